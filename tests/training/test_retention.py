"""Which checkpoints a run leaves, and what becomes of one for which there is no room."""

import contextlib
import itertools
import json
import re
import shutil
import subprocess

import pytest

from rwkv import train
from rwkv.checkpoint import store
from rwkv.config import cli
from rwkv.training.session import Session
from tests.conftest import the_run, tiny, write_text
from tests.training import forked
from tests.training.runs import assert_equal_runs, losses


def run(tmp_path, *args: str):
    text = write_text(tmp_path / "text.txt")
    code = cli.guarded(train.main, tiny("data=text", f"data.path={text}", f"out={tmp_path / 'out'}", *args))
    return code, the_run(tmp_path / "out")


def test_every_nth_the_best_and_the_last(tmp_path):
    code, folder = run(tmp_path, "checkpoint.keep=1", "checkpoint.keep_every=4", "checkpoint.best=1", "trainer.val_every=3", "optim.lr=0.3")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = {r["step"]: r["val/loss"] for r in records if "val/loss" in r}
    best = min(validated, key=validated.get)
    found = store.points(folder / "checkpoints")
    assert code == 0 and {store.step_of(p) for p in found} == {4, 8, 12, 16, 20} | {best}
    assert best % 4 and store.val_loss(store.best(found, 1)[0]) == pytest.approx(validated[best])


def test_training_goes_on_without_room_for_a_checkpoint(tmp_path, monkeypatch, capsys):
    """One is missed in the middle, with a warning; only at the end, where it would be lost, it is an error."""
    room = itertools.chain([10**9, 0, 10**9, 10**9], itertools.repeat(0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, next(room) if path.name == "checkpoints" else 10**9))
    code, folder = run(tmp_path, "checkpoint.every=5", "checkpoint.keep=9")
    assert code == 0 and [s for s, _ in losses(folder)] == list(range(1, 21))
    assert {store.step_of(p) for p in store.points(folder / "checkpoints")} == {5, 15, 20}
    assert "warning: checkpoint" in capsys.readouterr().out
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    code, folder = run(tmp_path)
    err = capsys.readouterr().err
    assert code == 2 and "0 B are free on that disk" in err and "Traceback" not in err


def fills_the_disk(overrides, step, file):
    """Trains; behind this step another program leaves no byte free on the disk of `file`."""
    advance = Session.advance

    def advanced(session, done):
        advance(session, done)
        if session.step == step:
            with contextlib.suppress(OSError), file.open("wb", buffering=0) as other:
                while True:
                    other.write(b"x" * 512)

    Session.advance = advanced
    return forked.train(overrides)


def a_full_disk(folder, step):
    """A real one: training goes on; at the end, which would be lost, a message; older checkpoints are sound; with room made, the same command goes on."""
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        args = tiny("data=text", f"data.path={write_text(folder / 'text.txt')}", f"data.cache={folder / 'data'}", "model.n_layer=1", "trainer.tokens=5120", "checkpoint.every=4", "checkpoint.background=false")
        log, filler = folder / "log", small / "filler"
        assert forked.codes([forked.start(fills_the_disk, [*args, f"out={small / 'out'}"], step, filler, log=log)]) == [2]
        told = log.read_text()
        assert "Traceback" not in told and told.count("metrics.jsonl cannot be written (No space left on device)") == 1
        assert "warning: checkpoint" in told and re.search(r"\nerror: checkpoint .*step-00000080 (was not|could not be) written", told), told
        points = store.points(the_run(small / "out") / "checkpoints")
        assert points and not [problem for point in points for problem in store.problems(point)]
        filler.unlink()
        for out in (small / "out", folder / "whole"):
            assert forked.codes([forked.start(forked.train, [*args, f"out={out}"], log=log)]) == [0]
        assert log.read_text().count(f"resumed from {points[0].name}") == 1
        assert_equal_runs(the_run(small / "out"), the_run(folder / "whole"))
    finally:
        subprocess.run(["umount", "--lazy", small])


def test_a_full_disk(tmp_path):
    a_full_disk(tmp_path, 6)
