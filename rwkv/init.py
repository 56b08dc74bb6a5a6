"""python -m rwkv.init OUT.pth [group=option ...] [key=value ...]: write a blank model, officially initialised."""

import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.errors import ConfigError


def main(argv: list[str]) -> int:
    """Compose the settings, initialise the model they describe, write it as an official `.pth` (bf16)."""
    overrides, flags = cli.separate(argv)
    if "--help" in flags or "-h" in flags:
        print(cli.usage("init OUT.pth", __doc__.split(": ", 1)[1]))
        return 0
    paths = [a for a in overrides if "=" not in a and not a.startswith("~")]
    if flags or len(paths) != 1:
        raise ConfigError("usage: python -m rwkv.init OUT.pth [model=0.1b] [tokenizer=world] [seed=1] ...")
    out = Path(paths[0])
    if out.exists():
        raise ConfigError(f"{out}: exists already; delete it, or name another file")

    from rwkv.config.check import check
    from rwkv.config.compose import load

    cfg = load([a for a in overrides if a != paths[0]])
    from rwkv.checkpoint import official
    from rwkv.config.derived import size_of
    from rwkv.config.vocab import VOCAB_SIZES
    from rwkv.data import tokenizer
    from rwkv.model.rwkv import initial_weights

    vocab = VOCAB_SIZES.get(cfg.tokenizer.kind) or tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path).vocab_size
    if cfg.model.path:
        raise ConfigError("model.path: a blank model is made from sizes, not from a file; python -m rwkv.convert copies one")
    check(cfg, reads_data=False)
    size = size_of(cfg, vocab)
    weights = {name: weight.bfloat16() for name, weight in initial_weights(size, cfg.seed)}  # never the whole model in fp32
    official.save(weights, out)
    print(f"{out}: RWKV-{size.version[1:]} {size.n_layer} x {size.n_embd}, vocabulary {size.vocab_size}, {sum(w.numel() for w in weights.values()):,} parameters, bf16")
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
