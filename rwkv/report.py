"""python -m rwkv.report [SWEEP | RUN ...] [--to FILE]: curves, settings and results of a sweep, or of several runs, on one page."""

import os
import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser
from rwkv.errors import CheckpointError, ConfigError
from rwkv.sweep.ledger import FILE, named, refresh, sweeps
from rwkv.sweep.page import write, write_sweep
from rwkv.sweep.results import of_runs

COMPARISON = "comparison.html"


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    parser = Parser(prog="python -m rwkv.report", description="Write curves, settings and results of a sweep, or of several runs, on one page.")
    parser.add_argument("what", nargs="*", help="a sweep's name or folder, or folders of runs; default: the newest sweep")
    parser.add_argument("--out", default="outputs", help="folder of the runs (%(default)s)")
    parser.add_argument("--to", metavar="FILE", help=f"of runs: the page's file; default: {COMPARISON} beside them")
    args = parser.parse_args(argv)
    folders = [Path(name) for name in args.what]
    if any((f / "config.yaml").is_file() for f in folders):
        print(f"report {of_folders(folders, args.to)}")
        return 0
    if args.to:
        raise ConfigError("--to: the page of a sweep is in the sweep's folder; --to goes with folders of runs")
    if len(folders) > 1:
        raise ConfigError(f"{args.what[1]}: one sweep at a time, or folders of runs")
    found = [named(args.what[0], Path(args.out))] if folders else sweeps(Path(args.out))
    if not found:
        raise CheckpointError(f"{args.out}: no sweep there; python -m rwkv.train -m makes one, --out names another folder")
    refresh(found[-1])
    print(f"report {write_sweep(found[-1])}")
    return 0


def of_folders(folders: list[Path], to: str | None) -> Path:
    """Write the page of several runs. Raises CheckpointError for a folder that is none, ConfigError for a file that cannot be written."""
    if sweep := next((f for f in folders if (f / FILE).is_file()), None):
        raise ConfigError(f"{sweep}: is a sweep; give one sweep, or folders of runs")
    results = of_runs(folders)
    target = Path(to) if to else Path(os.path.commonpath([f.resolve().parent for f in folders])) / COMPARISON
    try:
        write(results, target, f"{len(results)} runs" if len(results) > 1 else results[0].label)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}; --to names another file") from error
    return target


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
