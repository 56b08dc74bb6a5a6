"""Checkpoints are whole or not there."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwkv.checkpoint import store
from rwkv.errors import CheckpointError
from tests.conftest import ROOT, the_run, tiny, write_text
from tests.training import forked
from tests.training.stops_at import Stop, stops_at


def save(root, step, work, writers, keep, size=0):
    """A checkpoint of one process, as the run's saver makes it."""
    draft = store.Draft(root, step, work, "123")
    try:
        draft.check_room(size)
        return draft.commit(draft.write(writers), keep)
    except CheckpointError:
        store.clean(root)
        raise


def writers(value, n=1000):
    return {"model.safetensors": lambda p: save_file({"x": torch.full((n,), float(value))}, p), "progress.json": lambda p: p.write_text(f'{{"step": {value}}}')}


def scored(loss):
    return {store.PROGRESS: lambda p: p.write_text(json.dumps({"val_loss": loss}))}


def names(root):
    return [p.name for p in store.points(root)]


def test_newest_first_and_the_oldest_dropped(tmp_path):
    for step, work in ((1, 0), (2, 0), (2, 5), (2, 12), (10, 0)):
        save(tmp_path, step, work, writers(step), keep=store.Keep(3))
    assert names(tmp_path) == ["step-00000010", "step-00000002+000012", "step-00000002+000005"]
    assert sorted(os.listdir(tmp_path)) == sorted(names(tmp_path))


def test_the_same_point_again_replaces_it(tmp_path):
    save(tmp_path, 1, 0, writers(1), keep=store.Keep(2))
    save(tmp_path, 1, 0, writers(2), keep=store.Keep(2))
    assert load_file(store.newest_good(tmp_path, print) / "model.safetensors")["x"][0] == 2
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_save_replaces_the_future_it_was_resumed_before(tmp_path):
    """Damaged newer points, and one of another number of ranks, are not kept in place of the one just written."""
    for step, work in ((20, 0), (30, 7), (30, 0)):
        save(tmp_path, step, work, writers(step), keep=store.Keep(9))
    save(tmp_path, 30, 12, writers(30), keep=store.Keep(9))
    (tmp_path / "step-00000030" / "progress.json").write_text("damaged")
    written = save(tmp_path, 25, 0, writers(25), keep=store.Keep(1))
    assert names(tmp_path) == [written.name] == ["step-00000025"]
    save(tmp_path, 25, 40, writers(25), keep=store.Keep(2))
    save(tmp_path, 25, 16, writers(25), keep=store.Keep(2))
    assert names(tmp_path) == ["step-00000025+000016", "step-00000025"]


def test_every_nth_and_the_best_are_kept_for_ever(tmp_path):
    losses = {10: 3.0, 15: 2.0, 20: None, 25: 2.5, 30: 2.2, 35: float("nan"), 40: 2.7}
    for step, loss in losses.items():
        save(tmp_path, step, 0, scored(loss), store.Keep(newest=1, every=20, best=2))
    assert names(tmp_path) == [f"step-{n:08d}" for n in (40, 30, 20, 15)]
    save(tmp_path, 40, 7, scored(None), store.Keep(newest=1, every=20, best=1))
    assert names(tmp_path) == ["step-00000040+000007", *(f"step-{n:08d}" for n in (40, 20, 15))]
    (tmp_path / "step-00000015" / store.PROGRESS).write_text("damaged")  # it is no longer known to be the best
    save(tmp_path, 41, 0, scored(9.0), store.Keep(newest=1, best=1))
    assert names(tmp_path) == ["step-00000041", "step-00000040"]


def test_a_disk_without_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    older = save(tmp_path, 1, 0, writers(1), store.Keep(1))
    written = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(CheckpointError, match=r"step-00000002 was not written: it takes 6 kB, and 5 kB are free .*make room"):
        save(tmp_path, 2, 0, {"a": written.append}, store.Keep(1), size=6000)
    assert not written and os.listdir(tmp_path) == [older.name]
    save(tmp_path, 2, 0, writers(2), store.Keep(1), size=5000)


@pytest.mark.parametrize("replaced", ["step-00000001", "step-00000001+000005"])
def test_killed_between_the_two_renames(replaced, tmp_path):
    point = save(tmp_path, 1, 5 if "+" in replaced else 0, writers(1), keep=store.Keep(1))
    point.rename(tmp_path / f".old-{replaced}-123")
    (tmp_path / f".writing-{replaced}-123").mkdir()
    store.clean(tmp_path)
    assert os.listdir(tmp_path) == [replaced] and store.newest_good(tmp_path, print) == point


def test_a_rename_that_fails_leaves_the_point_that_was_there(tmp_path, monkeypatch):
    save(tmp_path, 1, 0, writers(1), keep=store.Keep(1))
    rename = os.replace

    def fails(source, target):
        if str(source).rpartition("/")[2].startswith(".writing"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(tmp_path, 1, 0, writers(2), keep=store.Keep(1))
    assert os.listdir(tmp_path) == ["step-00000001"]


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """The checkpoints of a run that was stopped inside its fourth step: files of every kind; and of one at its second."""
    folder = tmp_path_factory.mktemp("stopped")
    return checkpoints_of_a_stopped_run(folder)


def checkpoints_of_a_stopped_run(folder):
    args = tiny("data=text", f"data.path={write_text(folder / 'text.txt')}", f"out={folder / 'out'}", "layout.chunks=2", "checkpoint.every=2")
    process = forked.start(stops_at, args, Stop(3, 0), folder / "reads", log=folder / "log")
    assert forked.codes([process]) == [128 + signal.SIGTERM], (folder / "log").read_text()
    root = the_run(folder / "out") / "checkpoints"
    newest, older = store.points(root)
    kinds = {f.name.partition("-")[0] for f in newest.iterdir()}
    assert kinds == {"model", "optimizer", "carry", "unfinished", "progress.json", "manifest.json"}, "nothing is pickled"
    assert {f.suffix for f in newest.iterdir()} == {".safetensors", ".json"} and "+" in newest.name and "+" not in older.name
    return root


def flipped_bits(root, each, pick):
    """In every file of the newest checkpoint so many bits, one at a time: the file is named, and the checkpoint before is used."""
    newest, older = store.points(root)
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        for _ in range(each):
            bad = bytearray(good)
            bad[pick.randrange(len(bad))] ^= 1 << pick.randrange(8)
            file.write_bytes(bad)
            warnings = []
            assert store.newest_good(root, warnings.append) == older and file.name in warnings[0], file
        file.write_bytes(good)
    assert store.newest_good(root, print) == newest


def damaged_files(root, pick):
    """Every file of the newest checkpoint, in turn cut, empty, missing, with a hole of zeros, or that of the checkpoint before."""
    newest, older = store.points(root)
    damages = {
        "cut": lambda data, _: data[: pick.randrange(1, len(data))],
        "empty": lambda *_: b"",
        "hole": lambda data, _: data[:20] + bytes(len(data) - 40) + data[-20:],
        "missing": lambda *_: None,
        "of another step": lambda _, name: (older / name).read_bytes() if (older / name).exists() else None,
    }
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        for name, damage in damages.items():
            bad = damage(good, file.name)
            file.unlink(missing_ok=True) if bad is None else file.write_bytes(bad)
            warnings = []
            found = store.newest_good(root, warnings.append)
            if (name, file.name) != ("of another step", store.MANIFEST):  # whose files then are said to have changed
                assert file.name in warnings[0], (name, file)
            assert found == older and newest.name in warnings[0], (name, file)
        file.write_bytes(good)
    assert store.newest_good(root, print) == newest


def test_every_flipped_bit_is_detected(stopped_run):
    flipped_bits(stopped_run, 17, random.Random(0))


def test_other_damage_is_detected(stopped_run):
    damaged_files(stopped_run, random.Random(0))


def test_a_lost_manifest_is_no_fresh_start(tmp_path):
    """Nothing that is named as a checkpoint is passed over in silence."""
    (save(tmp_path, 1, 0, writers(1), keep=store.Keep(2)) / store.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is sound"):
        store.newest_good(tmp_path, lambda _: None)
    assert save(tmp_path, 1, 0, writers(1), keep=store.Keep(2)) == store.newest_good(tmp_path, print)


def test_none_sound_is_an_error_and_none_at_all_is_none(tmp_path):
    assert store.newest_good(tmp_path / "nothing", print) is None
    point = save(tmp_path, 1, 0, writers(1), keep=store.Keep(2))
    (point / "progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is sound"):
        store.newest_good(tmp_path, lambda _: None)


def test_a_failed_save_leaves_the_older_ones(tmp_path):
    save(tmp_path, 1, 0, writers(1), keep=store.Keep(1))

    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path, 2, 0, {**writers(2), "more": full}, keep=store.Keep(1))
    assert os.listdir(tmp_path) == ["step-00000001"]


KILLED = """
import sys; sys.path.insert(0, {root!r})
import torch
from pathlib import Path
from rwkv.checkpoint import store
from safetensors.torch import save_file
print("go", flush=True)
for step in range({first}, 10**9):
    x = torch.full((60_000,), float(step))
    draft = store.Draft(Path({folder!r}), step, 0, "123")
    files = draft.write({{"a": lambda p: save_file({{"x": x}}, p), "b": lambda p: save_file({{"x": x}}, p)}})
    draft.commit(files, store.Keep(2))
"""


def killed_while_saving(folder, kills, seed=1):
    """SIGKILL at random instants of saves, over and over: the newest checkpoint there is always whole and of one step.

    Returns after how many of the kills it was so: `kills`, or an assertion fails.
    """
    pick, first = random.Random(seed), 1
    for _ in range(kills):
        code = KILLED.format(root=str(ROOT), folder=str(folder), first=first)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.3 * pick.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        warnings = []
        newest = store.newest_good(folder, warnings.append)
        assert warnings == []
        if newest:
            step = int(newest.name.removeprefix("step-"))
            assert all((load_file(newest / f)["x"] == step).all() for f in "ab")
            first = step + 1
        store.clean(folder)
        assert sorted(os.listdir(folder)) == sorted(names(folder))
    assert first > 1
    return kills


@pytest.mark.slow
def test_sigkill_at_random_instants(tmp_path):
    assert killed_while_saving(tmp_path, 12) == 12
