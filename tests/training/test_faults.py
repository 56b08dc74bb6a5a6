"""A lost rank ends the others soon, and leaves no process behind; signals that come twice, or while saving, leave one sound checkpoint."""

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from rwkv.checkpoint import store
from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import load
from rwkv.errors import LOST
from rwkv.training.session import Session
from rwkv.training.signals import Stop
from tests.conftest import tiny, write_text
from tests.training import forked
from tests.training.runs import losses, start, wait_for_step


def children(pid: int) -> list[int]:
    """Processes that this one has started, and those that they have."""
    found = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return [*found, *(c for p in found for c in children(p))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def settings(folder: Path, *changes: str) -> list[str]:
    text = write_text(folder / "text.txt", 60_000)
    return tiny("data=text", f"data.path={text}", f"out={folder / 'out'}", "trainer.tokens=40k", *changes)


def a_lost_rank_ends_the_others(folder: Path, lost: int, sent: signal.Signals, strategy: str = "ddp") -> None:
    """Within a minute every process of the run is gone, the lost one too, and it is said which was lost and how to go on; the same command
    does, and has the losses of one process that nothing has happened to."""
    text = write_text(folder / "text.txt", 20_000)
    args = tiny("data=text", f"data.path={text}", "trainer.tokens=2560", "checkpoint.every=3", f"out={folder / 'out'}")
    several = [*args, f"strategy={strategy}", "strategy.devices=2", "strategy.timeout=4"]
    run = RunFolder.of(load(several))
    process = start(several, folder)
    wait_for_step(run.path, 8, process)
    family = [process.pid, *children(process.pid)]
    os.kill(family[lost], sent)
    try:
        told, _ = process.communicate(timeout=60)
        assert process.returncode == (LOST if lost else -signal.SIGKILL), told[-1000:]
        until = time.monotonic() + 20
        while any(map(alive, family)) and time.monotonic() < until:
            time.sleep(0.05)
        assert [p for p in family if alive(p)] == []
    finally:
        for pid in filter(alive, family):
            os.kill(pid, signal.SIGKILL)
    (newest, *_) = points = store.points(run.checkpoints)
    assert all(not list(store.problems(p)) for p in points)
    assert told.count(f"error: rank {lost} (process {family[lost]} on ") == 1 and "Traceback" not in told
    assert f"the same command goes on from {newest.name}: python -m rwkv.train {args[0]} " in told
    done = start(several, folder)
    assert f"resumed from {newest.name}" in done.communicate(timeout=120)[0] and done.returncode == 0
    one = [*args[:-1], f"out={folder / 'one'}"]
    assert forked.codes([forked.start(forked.train, one, log=folder / "log")]) == [0]
    got, want = dict(losses(run.path)), dict(losses(RunFolder.of(load(one)).path))
    assert got.keys() == want.keys() and len(want) == 40 and all(abs(got[s] - want[s]) <= 1e-6 * want[s] for s in want)


def signals_leave_a_sound_checkpoint(folder: Path, signals: list[signal.Signals], pick: random.Random) -> None:
    """A run that saves after every step gets these, one shortly after the other: it ends within 60 s, with the last one's code;
    what is there afterwards is sound, and the same command goes on."""
    args = settings(folder, "checkpoint.every=1")
    run = RunFolder.of(load(args))
    process = start(args, folder)
    wait_for_step(run.path, pick.randint(1, 12), process)
    for number in signals:
        process.send_signal(number)
        time.sleep(pick.random() * 0.05)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signals[-1], (process.returncode, told[-1000:])
    points = store.points(run.checkpoints)
    assert points and [problem for point in points for problem in store.problems(point)] == []
    assert list(run.checkpoints.glob(".*")) == []
    again = start(args, folder)
    lines = []
    assert any(lines.append(line) or line.startswith("resumed from step-") for line in again.stdout), lines
    again.kill()
    again.communicate()


@pytest.mark.parametrize(
    "lost, sent, strategy", [(0, signal.SIGKILL, "ddp"), (1, signal.SIGKILL, "ds2"), (0, signal.SIGSTOP, "ds2"), (1, signal.SIGSTOP, "ddp")]
)
def test_a_lost_rank_ends_the_others(lost, sent, strategy, tmp_path):
    a_lost_rank_ends_the_others(tmp_path, lost, sent, strategy)


def test_ranks_that_are_all_suspended_go_on(tmp_path):
    """For longer than strategy.timeout: Ctrl-Z, and fg later."""
    args = settings(tmp_path, "strategy=ddp", "strategy.devices=2", "strategy.timeout=2", "trainer.tokens=4k")
    processes = forked.ranks(2, forked.train, args, log=tmp_path / "log")
    run = RunFolder.of(load(args)).path
    while all(p.is_alive() for p in processes) and (not (run / "metrics.jsonl").exists() or len(losses(run)) < 5):
        time.sleep(0.02)
    for sent in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            os.kill(process.pid, sent)
        time.sleep(4)
    assert forked.codes(processes) == [0, 0], (tmp_path / "log-0").read_text()


def fails_on_the_second() -> None:
    advance = Session.advance

    def advanced(session, step):
        advance(session, step)
        if session.ranks.rank == 1 and session.step == 3:
            raise RuntimeError("out of memory, perhaps")

    Session.advance = advanced


def trained_with(patch, overrides: list[str]) -> int:
    patch()
    return forked.train(overrides)


def test_a_rank_that_fails_ends_the_others(tmp_path):
    """Its traceback is its own word; the others name it."""
    args = settings(tmp_path, "strategy=ddp", "strategy.devices=2")
    processes = forked.ranks(2, trained_with, fails_on_the_second, args, log=tmp_path / "log")
    found = forked.codes(processes)
    first, second = ((tmp_path / f"log-{rank}").read_text() for rank in (0, 1))
    assert found[0] == LOST and found[1] not in (0, None) and "RuntimeError: out of memory, perhaps" in second, (found, first, second)
    assert f"error: rank 1 (process {processes[1].pid} on " in first and "if no message of its own stands above" in first and "Traceback" not in first


def test_a_rank_lost_before_training_leaves_no_other(tmp_path):
    """The first, while the second is on its way up and has yet to meet it."""
    process = start(settings(tmp_path, "strategy=ddp", "strategy.devices=2"), tmp_path)
    while not (family := children(process.pid)):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while any(map(alive, family)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, family))


@pytest.mark.parametrize("signals", [[signal.SIGTERM] * 2, [signal.SIGINT]], ids=["SIGTERM twice", "SIGINT"])
def test_signals_twice_and_during_a_save(signals, tmp_path):
    signals_leave_a_sound_checkpoint(tmp_path, signals, random.Random(len(signals)))


def signalled_on_its_way_out() -> int:
    with Stop(told="") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    return stop.exit_code


def test_a_signal_when_all_is_saved_does_not_end_it_early(tmp_path):
    assert forked.codes([forked.start(signalled_on_its_way_out, log=tmp_path / "log")]) == [128 + signal.SIGTERM]


def test_twenty_starts_at_once(tmp_path):
    """Of one run, in the same second: one trains, the others are told so. Its folder bears no time that could be the same, or go back."""
    args = settings(tmp_path, "trainer.tokens=4k")
    code = forked.codes([forked.start(forked.train, args, log=tmp_path / "log") for _ in range(20)])
    log = (tmp_path / "log").read_text()
    trained, told = log.count("ready after"), log.count("is being trained by process")
    assert trained == 1 and code.count(2) == told and code.count(0) == 1 + log.count("this run is finished") and told >= 10
    assert len(list((tmp_path / "out").glob("*-text-*"))) == 1


def memory_of_a_run(overrides: list[str], every: int, file: Path) -> int:
    """Trains; writes the process's resident memory, in KiB, after every so many steps."""
    told, advance = file.open("w"), Session.advance

    def advanced(session, step):
        advance(session, step)
        if session.step % every == 0:
            told.write(f"{int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') // 1024}\n")
            told.flush()

    Session.advance = advanced
    return forked.train(overrides)


def memory_does_not_grow(folder: Path, steps: int) -> float:
    """By less than 1 MB in 1000 steps, in the later half of them: before, allocators still fill up. Returns by how much, in MB."""
    args = settings(folder, "model.n_layer=1", "model.n_embd=32", "model.head_size=32", "ctx_len=8", f"trainer.tokens={steps * 16}", "checkpoint.every=200",
                    "trainer.val_every=500", "trainer.log_every=10")  # fmt: skip
    assert forked.codes([forked.start(memory_of_a_run, args, steps // 50, folder / "kib", log=folder / "log")], 1200) == [0]
    kib = list(map(int, (folder / "kib").read_text().split()))[25:]
    places = range(len(kib))
    middle = statistics.fmean(places)
    slope = sum((i - middle) * x for i, x in zip(places, kib, strict=True)) / sum((i - middle) ** 2 for i in places) / (steps // 50)
    assert len(kib) == 25 and slope * 1000 < 1024, kib
    return slope * 1000 / 1024


def test_memory_does_not_grow(tmp_path):
    memory_does_not_grow(tmp_path, 5000)
