"""Injects faults many times over, and writes what was passed as a table: python scripts/faults.py [--scale 0.1]

The tests inject the same faults, by the same functions, a few times each. Rows are those that are counted here.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.checkpoint.test_store import killed_while_saving  # noqa: E402
from tests.training.test_faults import a_killed_rank_ends_the_others, signals_leave_a_sound_checkpoint  # noqa: E402

KILLS = 10  # in one folder, which each of them finds as the one before has left it
RESULT = ROOT / "scripts/bench/results/faults.md"
HEAD = """# Faults injected

Each fault is injected at random moments, and passed if all holds
that the test named asserts. Made by `python scripts/faults.py --scale {scale:g}` (1 is 200 kills during saves, 20 of each signal, 10 of each rank).

| fault | injected | passed | in the tests |
|---|---|---|---|
"""


def counted(inject: Callable[[Path, int], None], times: int, at: str | None) -> str:
    """How many faults passed of those injected: by `inject`, `times` in a new folder in `at`; what failed is printed.

    Of the kills of one folder, all count as failed if one does.
    """
    passed = 0
    for i in range(times):
        with tempfile.TemporaryDirectory(dir=at) as folder:
            try:
                inject(Path(folder), i)
                passed += 1
            except Exception as error:
                print(f"failed, time {i}: {error!r}", file=sys.stderr, flush=True)
    each = KILLS if inject is kills else 1
    return f"{passed * each} of {times * each}"


def kills(folder: Path, seed: int) -> None:
    killed_while_saving(folder, KILLS, seed)


def signals(*sent: signal.Signals) -> Callable[[Path, int], None]:
    return lambda folder, i: signals_leave_a_sound_checkpoint(folder, list(sent), random.Random(i))


ROWS = [
    ("killed during a save", f"SIGKILL at a random moment, {KILLS} in turn in one folder", kills, 20, None, "checkpoint/test_store.py"),
    ("the same on another filesystem", "the run in /dev/shm", kills, 20, "/dev/shm", "checkpoint/test_store.py"),
    ("SIGTERM twice", "0 to 50 ms apart, a save after every step", signals(signal.SIGTERM, signal.SIGTERM), 20, None, "training/test_faults.py"),
    ("SIGINT during a save", "a save after every step", signals(signal.SIGINT), 20, None, "training/test_faults.py"),
    ("first of two ranks lost", "SIGKILL", lambda f, i: a_killed_rank_ends_the_others(f, "first"), 10, None, "training/test_faults.py"),
    ("second of two ranks lost", "SIGKILL", lambda f, i: a_killed_rank_ends_the_others(f, "other"), 10, None, "training/test_faults.py"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="this share of the counts")
    scale = parser.parse_args().scale
    lines = []
    for fault, how, inject, times, at, test in ROWS:
        lines.append(f"| {fault} | {how} | {counted(inject, max(1, round(times * scale)), at)} | `tests/{test}` |")
        print(lines[-1], flush=True)
    RESULT.write_text(HEAD.format(scale=scale) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
