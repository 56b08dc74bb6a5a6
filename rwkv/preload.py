"""python -m rwkv.preload [group=option ...] [key=value ...]: prepare the data of these settings, so that training begins at once."""

import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser, number

OPTIONS = """
preload's own:
  --show N         print N records as text, what is trained and what is not told apart, and prepare nothing
  --ids            with --show: the id behind each token
  --binidx PREFIX  write all documents to PREFIX.bin and PREFIX.idx, on which RWKV-LM trains too (of a mix, to PREFIX-SOURCE)"""


def main(argv: list[str]) -> int:
    """Prepare each source, or show some of its records. Returns the exit code."""
    parser = Parser(prog="python -m rwkv.preload", add_help=False, allow_abbrev=False)
    parser.add_argument("--show", metavar="N", type=number(1, 1e9, int))
    parser.add_argument("--ids", action="store_true")
    parser.add_argument("--binidx", metavar="PREFIX")
    own, rest = parser.parse_known_args(argv)
    overrides, flags = cli.separate(rest)
    if "--help" in flags or "-h" in flags:
        print(cli.usage("preload", __doc__.split(": ", 1)[1]) + OPTIONS)
        return 0
    if unknown := [f for f in flags if f.startswith("-") and f.split("=")[0] not in cli.HYDRA_FLAGS]:
        parser.error(f"{unknown[0]}: unknown flag; settings are written key=value")
    if own.ids and not own.show:
        parser.error("--ids tells the ids of what --show shows; give it --show N")
    if flags:
        return cli.show(overrides, flags)

    from rwkv.config.check import check
    from rwkv.config.compose import load

    cfg = load(overrides)
    check(cfg)
    sources = {name: source.data for name, source in cfg.data.mix.items()} if cfg.data.kind == "mix" else {"": cfg.data}
    from rwkv.data import tokenizer

    tok = tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path)
    for name, data in sources.items():
        if own.show:
            from rwkv.data.show import show

            show(data, tok, own.show, own.ids)
        else:
            prefix = own.binidx and Path(f"{own.binidx}-{name}" if name else own.binidx)
            _prepare(cfg, data, tok, name, prefix)
    return 0


def _prepare(cfg, data, tok, name: str, prefix: Path | None) -> None:
    from rwkv.data import export, inplace
    from rwkv.data.prepare import store_of
    from rwkv.data.store import open_store
    from rwkv.data.summary import summary

    if prefix:
        export.check(prefix)
    for validation in (False, True) if data.val_path or data.val_split else (False,):
        folder = store_of(data, cfg.tokenizer, tok, Path(cfg.out), validation)
        corpus, about = open_store(folder)
        inplace.check_ids(about.place, about.highest, cfg.model.vocab_size or tok.vocab_size)
        summary(f"{name or cfg.name}{', validation' if validation else ''}", about, folder)
        if prefix and not validation:
            export.binidx_of(corpus, prefix)
            print(f"written   {prefix}.bin and .idx: for RWKV-LM --data_file {prefix} --data_type binidx --vocab_size {tok.vocab_size}")


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
