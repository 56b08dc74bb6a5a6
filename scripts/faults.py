"""Injects faults many times over, and writes what was passed as a table: python scripts/faults.py [--scale 0.1]

The tests inject the same faults, by the same functions, a few times each. Rows are those that are counted here.
"""

import argparse
import datetime
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkv.training.environment import device_name  # noqa: E402
from tests.checkpoint.test_store import checkpoints_of_a_stopped_run, flipped_bits, killed_while_saving  # noqa: E402
from tests.training.test_faults import a_lost_rank_ends_the_others, memory_does_not_grow, signals_leave_a_sound_checkpoint  # noqa: E402
from tests.training.test_resume import killed_all_along  # noqa: E402

KILLS = 10  # in one folder, which each of them finds as the one before has left it
RESULT = ROOT / "scripts/bench/results/faults.md"
HEAD = """# Faults injected

Each fault is injected at random moments, and passed if all holds
that the test named asserts. Made by `python scripts/faults.py --scale {scale:g}` (1 is 200 kills during saves, 20 of each signal, 10 of each rank, by ddp and ds2, and of all along).

| fault | injected | passed | in the tests |
|---|---|---|---|
"""
OTHERS = """
Faults that the tests inject at every place that matters, or of which once is enough:

| fault | what must hold | in the tests |
|---|---|---|
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


def bits(folder: Path, seed: int) -> None:
    flipped_bits(checkpoints_of_a_stopped_run(folder), 100, random.Random(seed))


def signals(*sent: signal.Signals) -> Callable[[Path, int], None]:
    return lambda folder, i: signals_leave_a_sound_checkpoint(folder, list(sent), random.Random(i))


def ranks(lost: int, sent: signal.Signals) -> Callable[[Path, int], None]:
    return lambda folder, i: a_lost_rank_ends_the_others(folder, lost, sent, ("ddp", "ds2")[i % 2])


ROWS = [
    ("killed during a save", f"SIGKILL at a random moment, {KILLS} in turn in one folder", kills, 20, None, "checkpoint/test_store.py"),
    ("the same on another filesystem", "the run in /dev/shm", kills, 20, "/dev/shm", "checkpoint/test_store.py"),
    ("SIGTERM twice", "0 to 50 ms apart, a save after every step", signals(signal.SIGTERM, signal.SIGTERM), 20, None, "training/test_faults.py"),
    ("SIGINT during a save", "a save after every step", signals(signal.SIGINT), 20, None, "training/test_faults.py"),
    ("killed all along three epochs", "5 SIGKILLs at random moments", lambda f, i: killed_all_along(f, 5, i), 10, None, "training/test_resume.py"),
    ("bits flipped", "100 in every file of a checkpoint, one at a time", bits, 1, None, "checkpoint/test_store.py"),
    ("10,000 steps", "memory grows by less than 1 MB in 1,000", lambda f, _: memory_does_not_grow(f, 10_000), 1, None, "training/test_faults.py"),
    ("first of two ranks killed", "SIGKILL", ranks(0, signal.SIGKILL), 10, None, "training/test_faults.py"),
    ("second of two ranks killed", "SIGKILL", ranks(1, signal.SIGKILL), 10, None, "training/test_faults.py"),
    ("first of two ranks stopped", "SIGSTOP", ranks(0, signal.SIGSTOP), 10, None, "training/test_faults.py"),
    ("second of two ranks stopped", "SIGSTOP", ranks(1, signal.SIGSTOP), 10, None, "training/test_faults.py"),
]

TESTED = [
    ("stopped at a step, an epoch's end, inside a step or document", "weights, moments and losses to the bit", "training/test_resume.py::test_stopped_at"),
    ("gone on with on other numbers of ranks", "the same tokens in the same order; losses to 1e-6", "training/test_ranks.py::test_going_on_with_other_strategies_and_processes"),
    ("other numbers of processes that prepare", "the same store", "data/test_prepare.py::test_killed_at_random_moments_it_goes_on_and_ends_the_same"),
    ("disk full during a save", "training goes on, or ends with a message; older checkpoints stay", "training/test_retention.py::test_training_goes_on_without_room_for_a_checkpoint"),
    ("a bit flipped in any kind of file", "found, the file named, the checkpoint before is taken", "checkpoint/test_store.py::test_every_flipped_bit_is_detected"),
    ("files cut, emptied, holed, lost, exchanged", "found before any weight changes", "checkpoint/test_store.py::test_other_damage_is_detected"),
    ("paths and lists among the settings", "no file of a run is a pickle; an exported .pth holds tensors alone", "test_convert.py::test_nothing_of_a_run_is_a_pickle"),
    ("a hostile pickle", "refused wherever models are read; its payload never runs", "test_bad_input.py::test_hostile_pickle_is_refused"),
    ("a loss or gradient that is not finite, on one rank of two", "all do the same at the same step: skip, rewind or stop", "training/test_guard.py::test_one_rank_of_two_is_bad"),
    ("ten bad steps in a row", "it ends with a dump", "training/test_guard.py::test_ten_in_a_row_end_with_a_dump"),
    ("preempted and a node lost, under Slurm", "weights of the uninterrupted run, to the bit", "sweep/test_slurm.py::test_a_node_dies_and_then_preemption_again_and_again"),
    ("ranks with fewer chunks", "the gradient of one process to 1e-6", "training/test_ranks.py::test_four_processes"),
    ("one run started twice; finished; damaged", "the second is told; nothing is done again", "training/test_resume.py::test_two_at_once_and_a_damaged_checkpoint"),
    ("twenty starts in one second", "one trains", "training/test_faults.py::test_twenty_starts_at_once"),
    ("data changed since the checkpoint", "refused, unless told otherwise", "training/test_resume.py::test_changed_data_is_refused"),
    ("malformed data", "counted and named by file and line, or refused", "data/test_malformed.py::test_malformed"),
    ("wandb not reached, or lost on the way", "training goes on; records stay here", "training/test_metrics.py::test_a_run_without_wandb_completes"),
    ("a kernel that cannot run", "what runs instead is named", "training/test_intro.py::test_a_compiler_that_fails_is_named"),
    ("runs of a sweep that fail; a sweep killed", "the rest goes on; what is finished is not done again", "sweep/test_local.py::test_interrupted_killed_and_gone_on_with"),
    ("documents in chunks of any length", "the gradient of one backward", "bptt/test_engine.py::test_equals_one_backward"),
    ("a bad value of any number", "the key, the value and what is allowed; no traceback", "config/test_numbers.py::test_a_bad_number"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="this share of the counts")
    scale = parser.parse_args().scale
    lines = []
    for fault, how, inject, times, at, test in ROWS:
        lines.append(f"| {fault} | {how} | {counted(inject, max(1, round(times * scale)), at)} | `tests/{test}` |")
        print(lines[-1], flush=True)
    others = []
    for fault, holds, test in TESTED:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test
        others.append(f"| {fault} | {holds} | `tests/{test}` |")
    where = f"\n{device_name()}, {datetime.date.today()}.\n"
    RESULT.write_text(HEAD.format(scale=scale) + "\n".join(lines) + "\n" + where + OTHERS + "\n".join(others) + "\n")


if __name__ == "__main__":
    main()
