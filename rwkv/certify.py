"""python -m rwkv.certify [group=option ...] [key=value ...] [--lengths=N,N]: prove that these settings give the exact gradient."""

import sys

from rwkv.config import cli
from rwkv.errors import ConfigError


def main(argv: list[str]) -> int:
    """Compare chunked with whole-document gradients under the settings of a run; 0 if all lengths pass, else 1."""
    overrides, flags = cli.separate(argv)
    if "--help" in flags or "-h" in flags:
        print(cli.usage("certify", __doc__.split(": ", 1)[1] + "\n\n--lengths=N,N: tokens of the documents compared; default 2, 3.5 and 6 chunks"))
        return 0
    lengths = None
    for flag in flags:
        name, _, value = flag.partition("=")
        if name != "--lengths" or not value:
            raise ConfigError(f"{flag}: unknown flag; usage: python -m rwkv.certify [--lengths=N,N,...] [key=value ...]")
        lengths = parse_lengths(value)

    from rwkv.config.check import check
    from rwkv.config.compose import load

    cfg = load(overrides)
    check(cfg, reads_data=False)

    from rwkv.memory import free_bytes, human, peak_bytes
    from rwkv.model.state import DTYPES
    from rwkv.training.intro import gradient_name
    from rwkv.training.planning.fit import one_backward
    from rwkv.training.planning.work import model_size
    from rwkv.training.ranks import Ranks
    from rwkv.training.selfcheck import ROWS, certificates
    from rwkv.training.session import settings_of

    device = Ranks(cfg.strategy).device
    size, ctx = model_size(cfg), cfg.ctx_len.tokens
    lengths = lengths or [2 * ctx, 7 * ctx // 2, 6 * ctx]
    if min(lengths) <= ctx:
        raise ConfigError(f"--lengths={min(lengths)}: one chunk of ctx_len={ctx} has all of it; compare documents of more than one chunk")
    need, free = one_backward(size, ROWS, max(lengths), cfg.precision.weights, device), free_bytes(device)
    if need > free:
        raise ConfigError(
            f"one backward over {max(lengths)} tokens does not fit: it needs about {human(need)}, and {human(free)} are free on {device}; "
            "give shorter --lengths=, a shorter ctx_len or a smaller model"
        )
    print(f"RWKV-{size.version[1:]} {size.n_layer} x {size.n_embd}, {cfg.precision.weights}, chunks of {ctx}, bptt {gradient_name(cfg)}, on {device}")
    print("relative error of the gradient, chunked against one backward over the whole document")
    all_passed = True
    for c in certificates(cfg, size, settings_of(cfg, None), lengths, device, DTYPES[cfg.precision.weights]):
        worst = sorted(c.groups.items(), key=lambda item: -item[1])
        print(f"\n{c.length} tokens in {c.chunks} chunks: {c.total:.1e} (bound {c.bound:.0e})  {'pass' if c.passed else 'FAIL'}")
        print("\n".join(f"  {group:24}{error:.1e}" for group, error in worst))
        all_passed &= c.passed
    if cfg.layout.kind != "document":
        print(
            f"\nlayout={cfg.layout.kind} takes steps of layout.chunks={cfg.layout.chunks}: the gradient is exact over those {cfg.layout.chunks * ctx} tokens of a "
            "lane and does not pass between steps; layout=document takes whole documents"
        )
    print(f"\n{'EXACT: every length passes' if all_passed else 'NOT EXACT'}; peak memory {human(peak_bytes(device))}")
    return 0 if all_passed else 1


def parse_lengths(value: str) -> list[int]:
    from rwkv.config.schema import parse_count

    lengths = [parse_count(part) for part in value.split(",")]
    if not all(isinstance(n, int) and n > 0 for n in lengths):
        raise ConfigError(f"--lengths={value}: wanted numbers of tokens, as 300,4k")
    return lengths


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
