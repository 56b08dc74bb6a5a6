"""A run that is stopped and taken up again equals the one that was not, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rwkv.checkpoint import shards, store
from tests.conftest import ROOT, command, the_run, tiny, write_text


def start(args, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "rwkv.train", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]


def assert_equal_runs(a: Path, b: Path):
    assert losses(a) == losses(b)
    ends = [store.points(f / "checkpoints")[0] for f in (a, b)]
    assert ends[0].name == ends[1].name
    for kind in ("model", "optimizer", "carry"):
        x, y = (shards.Tensors(e, kind) for e in ends)
        assert x.keys() == y.keys()
        assert all((x[k] == y[k]).all() for k in x), kind


def wait_for_step(folder: Path, step: int, process) -> None:
    while process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len(losses_so_far(folder)) >= step:
            return
        time.sleep(0.02)


def losses_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 30_000)


def settings(text, out):
    return tiny("trainer.tokens=6400", "data=text", f"data.path={text}", f"out={out}")


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = command("train", *settings(text, folder / "out"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder / "out")


def test_ctrl_c_then_the_same_command(text, tmp_path, uninterrupted):
    args = settings(text, tmp_path / "out")
    folder = tmp_path / "out" / uninterrupted.name
    stops = 0
    for at, number in ((1, signal.SIGINT), (40, signal.SIGTERM)):
        process = start(args, tmp_path)
        wait_for_step(folder, at, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        stops += 1
        assert process.returncode == 128 + number, output
        assert "the same command goes on" in output
    assert stops >= 1
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 0 and "resumed from step-" in done.stdout, done.stderr
    assert_equal_runs(folder, uninterrupted)
    again = command("train", *args, cwd=tmp_path)
    assert again.returncode == 0 and "this run is finished" in again.stdout
    fingerprint = json.loads((folder / "summary.json").read_text())["data"]
    assert f"its data was {fingerprint} (the fingerprint); it was not read again" in again.stdout


def test_killed_after_the_last_checkpoint_and_its_records_lost(text, tmp_path, uninterrupted):
    """The end is done again, but not the checkpoint that it has already; a training loss that nobody recorded is left out."""
    folder = tmp_path / "out" / uninterrupted.name
    shutil.copytree(uninterrupted, folder)
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").unlink()
    before = store.points(folder / "checkpoints")[0].stat()
    for _ in range(2):
        done = command("train", *settings(text, tmp_path / "out"), cwd=tmp_path)
        assert done.returncode == 0 and "training loss" not in done.stdout, done.stderr
        assert store.points(folder / "checkpoints")[0].stat() == before
    assert "this run is finished: 6,400 tokens, validation" in done.stdout


def test_the_last_step_is_recorded_however_few_are(text, tmp_path):
    done = command("train", *tiny("data=text", f"data.path={text}", f"out={tmp_path / 'out'}", "trainer.log_every=1000"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(the_run(tmp_path / "out"))] == [20]


def test_kill_at_any_moment(text, tmp_path, uninterrupted):
    """SIGKILL loses at most the steps since the last checkpoint, and never leaves one that loads wrongly."""
    args = [*settings(text, tmp_path / "out"), "checkpoint.every=3"]
    folder = tmp_path / "out" / uninterrupted.name
    pick = random.Random(0)
    for _ in range(6):
        process = start(args, tmp_path)
        wait_for_step(folder, pick.randint(1, 90), process)
        time.sleep(pick.random() * 0.1)
        process.kill()
        process.communicate()
        for point in store.points(folder / "checkpoints"):
            assert list(store.problems(point)) == []
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(folder, uninterrupted)


def test_in_the_middle_of_a_document(tmp_path):
    """One document of many chunks is one optimizer step; a stop inside it is no loss."""
    np.save(tmp_path / "long.npy", np.random.default_rng(0).integers(1, 257, 3000).astype(np.uint16))
    args = tiny("data=tokens", f"data.path={tmp_path / 'long.npy'}", "layout=document", "layout.rows=1", "ctx_len=16", "trainer.tokens=6000")
    whole = command("train", *args, f"out={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    stops = 0
    for pause in (0.2, 0.8, 0.5):
        process = start([*args, f"out={tmp_path / 'out'}"], tmp_path)
        for line in process.stdout:
            if line.startswith("ready"):
                break
        time.sleep(pause)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        stops += process.returncode == 128 + signal.SIGTERM
    points = [p.name for p in store.points(the_run(tmp_path / "out") / "checkpoints")]
    assert stops >= 2 and any("+" in name for name in points), points
    done = command("train", *args, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(the_run(tmp_path / "out"), the_run(tmp_path / "whole"))


def test_two_at_once_and_a_damaged_checkpoint(text, tmp_path, uninterrupted):
    args = [*settings(text, tmp_path / "out"), "checkpoint.every=10"]
    folder = tmp_path / "out" / uninterrupted.name
    first = start(args, tmp_path)
    wait_for_step(folder, 25, first)
    first.send_signal(signal.SIGSTOP)
    second = command("train", *args, cwd=tmp_path)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and "is being trained by process" in second.stderr
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    newest = store.points(folder / "checkpoints")[0]
    blob = bytearray((newest / "model-00000.safetensors").read_bytes())
    blob[-100] ^= 1
    (newest / "model-00000.safetensors").write_bytes(blob)
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is damaged and not used" in done.stdout and "model-00000.safetensors" in done.stdout
    assert_equal_runs(folder, uninterrupted)


def test_changed_data_is_refused(text, tmp_path, uninterrupted):
    copy = tmp_path / "text.txt"
    copy.write_text(text.read_text())
    args = settings(copy, tmp_path / "out")
    process = start(args, tmp_path)
    while not list((tmp_path / "out").glob("*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    copy.write_text("Now " + copy.read_text())
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 2 and "the data has changed" in done.stderr
