"""python -m rwkv.export MODEL OUT [--dtype bf16|fp16|fp32]: write a run or checkpoint for others, as an official `.pth` in bf16."""

import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser
from rwkv.convert import FORMATS, convert


def main(argv: list[str]) -> int:
    """`rwkv.convert`, with the dtype that others expect."""
    parser = Parser(prog="python -m rwkv.export", description=f"Write a run or checkpoint for others. {FORMATS}")
    parser.add_argument("model", type=Path, help="run folder, checkpoint folder or model file")
    parser.add_argument("out", type=Path, help="what to write; its name decides the format")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="(%(default)s)")
    parser.add_argument("--released", action="store_true", help="v7: without layer 0's unused v0 v1 v2, as released files are")
    args = parser.parse_args(argv)
    return convert(args.model, args.out, args.dtype, args.released, check=False)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
