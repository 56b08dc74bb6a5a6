"""python -m rwkv.export MODEL OUT.pth [--dtype bf16|fp16|fp32]: write a run or checkpoint as an official `.pth`."""

import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser
from rwkv.errors import ConfigError


def main(argv: list[str]) -> int:
    """Load, check, write."""
    parser = Parser(prog="python -m rwkv.export", description="Write a run or checkpoint as an official .pth.")
    parser.add_argument("model", type=Path, help="run folder, checkpoint folder or .pth")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="(%(default)s)")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise ConfigError(f"{args.out}: exists already; delete it, or name another file")

    import torch

    from rwkv.checkpoint import official
    from rwkv.model.rwkv import count_parameters

    model = official.build(official.load(args.model))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.dtype]
    official.save(dict(model.named_parameters()), args.out, dtype)
    size = model.size
    print(f"{args.out}: RWKV-7 {size.n_layer} x {size.n_embd}, vocabulary {size.vocab_size}, {count_parameters(model):,} parameters, {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
