"""What is written beside training: not waited for, of the moment it was begun at, whole or not there, its errors told."""

import os
import random
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from rwkv import train
from rwkv.checkpoint import shards, store
from rwkv.config import cli
from rwkv.errors import CheckpointError, DataError
from rwkv.training.ranks import Ranks
from rwkv.training.saving import Saver
from rwkv.training.session import Session
from tests.conftest import ROOT, the_run, tiny, write_text
from tests.training.runs import assert_equal_runs, losses


class OneRank:
    """What a saver asks of `Ranks`, of one process."""

    world, rank, first = 1, 0, True
    fabric = SimpleNamespace(broadcast=lambda value: value)
    gather, count = Ranks.gather, Ranks.count


@pytest.fixture
def saver(tmp_path):
    return Saver(OneRank(), tmp_path / "checkpoints", store.Keep(9))


@pytest.fixture
def gate(monkeypatch):
    """The disk takes nothing until this is set."""
    gate = threading.Event()
    sync = store.sync
    monkeypatch.setattr(store, "sync", lambda path: gate.wait(60) and sync(path))
    yield gate
    gate.set()


def start(saver, step, x):
    saver.start(step, 0, {"model": {"x": saver.copy("x", x)}}, {store.PROGRESS: "{}"})


def test_training_goes_on_while_it_is_written(saver, gate):
    x = torch.zeros(1000)
    start(saver, 1, x)
    x += 1  # the next steps
    assert not saver.ready and not store.points(saver.root)
    gate.set()
    point = saver.finish()
    assert store.points(saver.root) == [point] and not list(store.problems(point))
    assert torch.equal(shards.Tensors(point, "model")["x"], torch.zeros(1000))


def test_a_boundary_of_training_waits_for_nothing(saver, gate):
    start(saver, 1, torch.zeros(1000))
    gate.set()
    boundaries = 0
    while saver.stage and boundaries < 6000:
        if saver.ready:
            saver.advance()
        boundaries += 1
        time.sleep(0.001)
    assert 2 <= boundaries < 6000 and store.points(saver.root)


def test_an_error_is_raised_where_training_looks_and_leaves_nothing(saver, monkeypatch):
    start(saver, 1, torch.zeros(1000))
    older = saver.finish()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "sync", full)
    start(saver, 2, torch.zeros(1000))
    with pytest.raises(CheckpointError, match="step-00000002 could not be written: .*No space left"):
        saver.finish()
    monkeypatch.undo()
    assert os.listdir(saver.root) == [older.name]
    start(saver, 3, torch.zeros(1000))
    assert saver.finish().name == "step-00000003"


def test_a_run_whose_disk_fails_once_warns_and_goes_on(tmp_path, monkeypatch, capsys):
    """In the background and while training waits, the same runs come of it, and the same checkpoints."""
    text = write_text(tmp_path / "text.txt")
    write = store.Draft.write

    def fails(draft, writers):
        if draft.step == 5:
            raise CheckpointError("the disk is gone")
        return write(draft, writers)

    monkeypatch.setattr(store.Draft, "write", fails)
    for background in (True, False):
        args = "checkpoint.every=5", "checkpoint.keep=9", f"checkpoint.background={background}".lower()
        assert cli.guarded(train.main, tiny("data=text", f"data.path={text}", f"out={tmp_path / str(background)}", *args)) == 0
        assert capsys.readouterr().out.count("warning: the disk is gone; training goes on") == 1
    a, b = the_run(tmp_path / "True"), the_run(tmp_path / "False")
    assert a.name == b.name and len(losses(a)) == 20
    assert [[store.step_of(p) for p in store.points(f / "checkpoints")] for f in (a, b)] == [[20, 15, 10]] * 2
    assert_equal_runs(a, b)


def test_an_error_of_training_loses_no_checkpoint_that_is_being_written(tmp_path, monkeypatch):
    text = write_text(tmp_path / "text.txt")
    sync, next_step = store.sync, Session.next_step

    def ends(session):
        if session.step == 3:
            raise DataError("the data has ended")
        return next_step(session)

    monkeypatch.setattr(store, "sync", lambda path: time.sleep(0.1) or sync(path))
    monkeypatch.setattr(Session, "next_step", ends)
    assert cli.guarded(train.main, tiny("data=text", f"data.path={text}", f"out={tmp_path / 'out'}", "checkpoint.every=3")) == 2
    assert os.listdir(the_run(tmp_path / "out") / "checkpoints") == ["step-00000003"]


def test_checkpoints_of_one_file_are_read(tmp_path):
    """As they were written before there were shards."""
    draft = store.Draft(tmp_path, 3, 0, "old")
    old = {"model.safetensors": {"a": torch.ones(2)}, "optimizer.safetensors": {"step/a": torch.tensor(3.0)}, "carry.safetensors": {"shift": torch.zeros(2)}}
    point = draft.commit(draft.write({n: lambda p, x=x: save_file(x, p) for n, x in old.items()}), store.Keep(1))
    assert dict(shards.Tensors(point, "model")).keys() == {"a"} and shards.Tensors(point, "optimizer")["step/a"] == 3
    assert shards.files(point, "carry") == [point / "carry.safetensors"] and shards.files(point, "unfinished") == []


def test_shards_are_dealt_by_size_and_read_as_one(tmp_path):
    shapes = {f"w{i}": torch.Size([2**i, 3]) for i in range(12)}
    owner = shards.deal(shapes, 3)
    loads = [sum(s.numel() for n, s in shapes.items() if owner[n] == r) for r in range(3)]
    assert set(owner) == set(shapes) and max(loads) == shapes["w11"].numel()
    draft, files = store.Draft(tmp_path, 1, 0, "x"), {}
    tensors = {n: torch.randn(s) for n, s in shapes.items()}
    for rank in (2, 0, 1):
        files |= draft.write({shards.name_of("model", rank): shards.writer({n: x for n, x in tensors.items() if owner[n] == rank})})
    point = draft.commit(files, store.Keep(1))
    read = shards.Tensors(point, "model")
    assert read.shapes() == shapes and all(torch.equal(read[n], x) for n, x in tensors.items())
    assert [f.name for f in shards.files(point, "model")] == [f"model-{r:05d}.safetensors" for r in range(3)]
    (point / "model-00001.safetensors").write_bytes(b"")
    shares = [list(store.problems(point, slice(r, None, 2))) for r in range(2)]
    assert sorted(map(len, shares)) == [0, 1] and "model-00001.safetensors: 0 bytes" in "".join(map(str, shares))


KILLED = """
import sys; sys.path.insert(0, {root!r})
import torch
from pathlib import Path
from rwkv.checkpoint import store
from rwkv.training.saving import Saver
from tests.training.test_saving import OneRank, start
saver = Saver(OneRank(), Path({folder!r}), store.Keep(2))
store.clean(saver.root)
x = torch.zeros(300_000)
print("go", flush=True)
for step in range({first}, 10**9):
    x.fill_(step)
    if saver.ready:
        saver.advance()
    if not saver.stage:
        start(saver, step, x)
"""


def test_sigkill_while_a_thread_writes(tmp_path):
    """Killed over and over: the newest checkpoint is always whole and of one step, though its tensors went on changing."""
    pick, first = random.Random(2), 1
    for _ in range(3):
        code = KILLED.format(root=str(ROOT), folder=str(tmp_path), first=first)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.3 * pick.random())
        process.kill()
        process.communicate()
        warnings = []
        newest = store.newest_good(tmp_path, warnings.append)
        assert warnings == []
        if newest:
            assert (shards.Tensors(newest, "model")["x"] == store.step_of(newest)).all()
            first = store.step_of(newest) + 1
    assert first > 1
