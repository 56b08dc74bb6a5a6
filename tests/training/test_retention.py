"""Which checkpoints a run leaves, and what becomes of one for which there is no room."""

import itertools
import json
import shutil

import pytest

from rwkv import train
from rwkv.checkpoint import store
from rwkv.config import cli
from tests.conftest import the_run, tiny, write_text
from tests.training.test_resume import losses


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
