"""Loss curves beside each other: of other kernels, of other settings, of the code as it was.

    python scripts/loss_compare.py model.kernel=reference model.kernel=cpu model.kernel=chunked -- trainer.tokens=500k
    python scripts/loss_compare.py --equal --commit HEAD~1 "" -- trainer.tokens=64k

Each argument before `--` is a run, its settings in one word; what follows is set in all. The first is what the others are held against,
and with --commit runs on the code of that commit. Differences are those of the mean training loss of WINDOW steps. The noise beside
them is how far the first run itself gets from that with other seeds, at most, of as many as --seeds says.
"""

import argparse
import contextlib
import datetime
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkv.training import metrics  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402

WINDOW = 50  # steps


def losses(code: Path, settings: list[str]) -> list[float]:
    """The training loss of each step of a run by that code. What is set again replaces what was."""
    settings = [*{setting.partition("=")[0]: setting for setting in settings}.values()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rwkv.train", *settings, f"out={folder}"]
        done = subprocess.run(command, cwd=code, env=os.environ | {"PYTHONPATH": str(code)}, stdout=sys.stderr)
        if done.returncode:
            sys.exit(f"error: {shlex.join(command)} ended with {done.returncode}")
        (file,) = Path(folder).glob("*/metrics.jsonl")
        return [r["train/loss"] for r in metrics.read(file) if "train/loss" in r]


@contextlib.contextmanager
def code_of(commit: str | None) -> Iterator[Path]:
    """A folder with the code of a commit; of None, this one."""
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "code"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def windows(first: list[float], others: list[list[float]], noise: list[list[float]]) -> list[list[str]]:
    """Rows of the table: steps, the first's mean loss, the others' differences, the largest of the noise."""
    rows = []
    for start in range(0, len(first), WINDOW):
        mean = lambda curve: fmean(curve[start : start + WINDOW])  # noqa: B023
        row = [f"{start + 1} to {min(start + WINDOW, len(first))}", f"{mean(first):.4f}", *(f"{mean(x) - mean(first):+.5f}" for x in others)]
        rows.append(row + ([f"{max(abs(mean(x) - mean(first)) for x in noise):.5f}"] if noise else []))
    return rows


def main() -> int:
    ours, common = (sys.argv[1:], []) if "--" not in sys.argv else (sys.argv[1 : (i := sys.argv.index("--"))], sys.argv[i + 1 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="SETTINGS")
    parser.add_argument("--commit", help="of the first run's code")
    parser.add_argument("--equal", action="store_true", help="fail unless all losses are equal to the bit")
    parser.add_argument("--seeds", type=int, default=0, help="more runs of the first, for the noise")
    parser.add_argument("--write", type=Path, help="file for the table")
    args = parser.parse_args(ours)
    settings = [["trainer.log_every=1", "checkpoint.every=0", "sample.tokens=0", *common, *shlex.split(run)] for run in args.runs]
    with code_of(args.commit) as code:
        first = losses(code, settings[0])
    others = [losses(ROOT, s) for s in (settings[1:] or settings)]
    noise = [losses(ROOT, [*settings[0], f"seed={seed}"]) for seed in range(1000, 1000 + args.seeds)]
    names = [run or "(these settings)" for run in args.runs] if len(args.runs) > 1 else [f"code of {args.commit or 'this folder'}", "code of this folder"]
    head = ["steps", names[0], *names[1:], *(["noise"] if noise else [])]
    table = [head, ["---"] * len(head), *windows(first, others, noise)]
    equal = all(x == first for x in others)
    typed = shlex.join(["scripts/loss_compare.py", *(x for x in sys.argv[1:] if x not in ("--write", str(args.write)))])
    lines = ["# Loss curves", "", f"{device_name()}, {datetime.date.today()}: `{typed}`. Behind the first: differences from it.", ""]
    lines += [f"| {' | '.join(row)} |" for row in table] + ["", "Equal to the bit." if equal else "Not equal to the bit."]
    print("\n".join(lines))
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")
    return 0 if equal or not args.equal else 1


if __name__ == "__main__":
    sys.exit(main())
