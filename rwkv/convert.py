"""python -m rwkv.convert IN OUT [--dtype bf16|fp16|fp32] [--released] [--check]: a model from one file format to another."""

import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser
from rwkv.errors import CheckpointError, ConfigError

FORMATS = "OUT is an official .pth, a .safetensors file with the same keys, or, for RWKV-7 and RWKV-4, a folder as Hugging Face's libraries read it."


def main(argv: list[str]) -> int:
    """Load, say what it is, write, and compare if asked."""
    parser = Parser(prog="python -m rwkv.convert", description=f"A model from one file format to another. {FORMATS}")
    parser.add_argument("model", type=Path, help=".pth, .safetensors, Hugging Face folder, run folder or checkpoint")
    parser.add_argument("out", type=Path, help="what to write; its name decides the format")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: as they are")
    parser.add_argument("--released", action="store_true", help="v7: without layer 0's unused v0 v1 v2, as released files are")
    parser.add_argument("--check", action="store_true", help="read it back and compare logits")
    args = parser.parse_args(argv)
    return convert(args.model, args.out, args.dtype, args.released, args.check)


def convert(source: Path, out: Path, dtype_name: str | None, released: bool, check: bool) -> int:
    """Raises ConfigError if `out` exists, CheckpointError if the model cannot be read, written, or differs when read back."""
    if out.exists():
        raise ConfigError(f"{out}: exists already; delete it, or name another")

    import torch

    from rwkv.checkpoint import official

    weights = official.load(source)
    size = official.size_of(weights)
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in weights.values()})
    print(f"{source}: {official.describe(weights)}, {', '.join(dtypes)}")
    weights = official.complete(weights)
    if released:
        weights = {name: w for name, w in weights.items() if name not in official.UNUSED}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, None: None}[dtype_name]
    official.write(weights, out, dtype)
    print(f"{out}: written{f', {dtype_name}' if dtype_name else ''}")
    if check:
        difference = _difference(weights, official.load(out), size.vocab_size, dtype)
        print(f"logits of 64 random tokens before and after: largest difference {difference:.1e}")
        if difference > 1e-5:
            raise CheckpointError(f"{out}: not the same model when read back")
    return 0


def _difference(before: dict, after: dict, vocab_size: int, dtype) -> float:
    """Largest difference of logits, both computed in fp32; a change of dtype is applied to `before` too."""
    import torch

    from rwkv.checkpoint import official

    tokens = torch.randint(0, vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    rounded = before if dtype is None else {n: w.to(dtype) for n, w in before.items()}
    with torch.no_grad():
        a, b = (m.logits(m(tokens)[0]) for m in (official.build(rounded), official.build(after)))
    return (a - b).abs().max().item()


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
