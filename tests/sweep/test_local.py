"""A sweep on this machine: failures, repetitions, interruptions, kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from rwkv import disk
from rwkv.checkpoint import store
from rwkv.config.launch import Local
from rwkv.errors import ConfigError
from rwkv.sweep.ledger import Job, Sweep
from rwkv.sweep.local import LocalBackend
from tests.conftest import ROOT, command, tiny, write_text
from tests.training.runs import assert_equal_runs


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def settings(text, *changes):
    return [a for a in tiny("model.n_layer=1", "data=text", f"data.path={text}", *changes) if not a.startswith("optim.lr")]


def ledger(folder):
    (file,) = folder.glob("outputs/sweeps/*/sweep.json")
    return json.loads(file.read_text())["jobs"]


@pytest.mark.slow
def test_failures_do_not_stop_the_rest_and_the_same_command_adds_what_is_new(text, tmp_path):
    args = settings(text, "logger=wandb", "logger.mode=offline")
    env = {"HOME": str(tmp_path)}
    done = command("train", "-m", *args, "optim.lr=3e-3,1e38", "hydra.launcher.jobs=2", cwd=tmp_path, env=env)
    assert done.returncode == 1, done.stderr
    assert "2 runs, 0 of them finished; 2 at once" in done.stdout
    assert re.search(r"#2 lr=1e\+38 failed \(exit code 2\).*\n(.*\n)*.*\| error: step 2: loss", done.stdout), done.stdout
    assert re.search(r"best of 1 run:\n  #1 lr=0.003: validation \d", done.stdout)
    assert [j["state"] for j in ledger(tmp_path)] == ["done", "failed"]
    (record,) = (tmp_path / ledger(tmp_path)[0]["run"]).glob("wandb/offline-run-*/*.wandb")
    assert next(tmp_path.glob("outputs/sweeps/*")).name.encode() in record.read_bytes(), "the runs of a sweep are a group of wandb"
    again = command("train", "-m", *args, "optim.lr=3e-3,4e-3", cwd=tmp_path, env=env)
    assert again.returncode == 0, again.stdout
    assert "2 runs, 1 of them finished" in again.stdout and "#1 " not in again.stdout.split("best of")[0]
    assert [(j["label"], j["state"], j["attempts"]) for j in ledger(tmp_path)] == [("lr=0.003", "done", 1), ("lr=1e+38", "failed", 1), ("lr=0.004", "done", 1)]
    by_hand = command("train", *args, "optim.lr=0.004", cwd=tmp_path, env=env)
    assert "this run is finished" in by_hand.stdout, "a job is the run of its own settings"


def start(args, cwd, log):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "rwkv.train", "-m", *args], cwd=cwd, env=env, stdout=log.open("a"), stderr=subprocess.STDOUT)


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(folder):
    return sorted(f for f in (folder / "outputs").glob("*-text-*"))


def steps(folder):
    return [len((r / "metrics.jsonl").read_text().splitlines()) if (r / "metrics.jsonl").exists() else 0 for r in runs(folder)]


def last_step(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def held(folder):
    return [disk.holder(r / ".lock") for r in runs(folder)]


@pytest.mark.slow
def test_interrupted_killed_and_gone_on_with(text, tmp_path):
    """Ctrl-C saves all; a second parent is refused; a killed parent leaves no orphan; in the end the runs are those of no interruption."""
    args = settings(text, "trainer.tokens=24k", "seed=1,2", "hydra.launcher.jobs=2")
    log = tmp_path / "log"
    for how in (signal.SIGINT, signal.SIGKILL):
        before = steps(tmp_path)
        parent = start(args, tmp_path, log)
        if how == signal.SIGINT:
            wait_for(lambda: any(disk.holder(f) for f in tmp_path.glob("outputs/sweeps/*/.lock")))
            second = command("train", "-m", *args, cwd=tmp_path)
            assert second.returncode == 2 and f"is being run by process {parent.pid}" in second.stderr
        wait_for(lambda before=before: len(steps(tmp_path)) == 2 and all(n > b + 2 for n, b in zip(steps(tmp_path), before or (0, 0), strict=True)))
        parent.send_signal(how)
        assert parent.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL), log.read_text()
        wait_for(lambda: held(tmp_path) == [None, None], 10)
        points = [store.points(r / "checkpoints") for r in runs(tmp_path)]
        assert all(points) and [last_step(r) for r in runs(tmp_path)] == [int(p[0].name[-8:]) for p in points]
    assert "the same command goes on with them" in log.read_text()
    done = command("train", "-m", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert [(j["state"], j["attempts"]) for j in ledger(tmp_path)] == [("done", 3), ("done", 3)]
    whole = settings(text, "trainer.tokens=24k", "seed=2", f"out={tmp_path / 'whole'}")
    assert command("train", *whole, cwd=tmp_path).returncode == 0
    (uninterrupted,) = (tmp_path / "whole").glob("*-text-*")
    assert_equal_runs(tmp_path / "outputs" / uninterrupted.name, uninterrupted)


@pytest.mark.slow
def test_a_run_that_someone_else_trains_is_waited_for(text, tmp_path):
    args = settings(text)
    holder = (tmp_path / "lock").open("a+")
    first = command("train", "-m", *args, "seed=1,2", "--cfg", "job", cwd=tmp_path)
    run = tmp_path / first.stdout.split()[0]
    run.mkdir(parents=True)
    holder = (run / ".lock").open("a+")
    disk.lock(holder, pytest.fail)
    parent = start([*args, "seed=1,2"], tmp_path, tmp_path / "log")
    wait_for(lambda: "done in" in (tmp_path / "log").read_text())
    assert f"#1 seed=1: is being trained by process {os.getpid()}" in (tmp_path / "log").read_text()
    holder.close()
    assert parent.wait(60) == 0, (tmp_path / "log").read_text()


def job(number, devices=1, cpu=False):
    return Job(number, [], "", "x", 1, devices=devices, cpu=cpu)


def test_each_device_has_one_job(tmp_path, monkeypatch):
    seen = []

    class Process:
        pid = 0

        def __init__(self, *_, env, **__):
            seen.append(env.get("CUDA_VISIBLE_DEVICES"))

        def poll(self):
            return None if seen[-1] != "over" else 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    sweep = Sweep(tmp_path)
    sweep.logs.mkdir()
    backend = LocalBackend(sweep, Local("local", None, 30.0), gpus=["4", "5", "7"])
    assert backend.parallel == 3
    backend.check([job(1, 3)])
    with pytest.raises(ConfigError, match=r"#1 .*strategy\.devices=4, and there are 3 GPUs here"):
        backend.check([job(1, 4)])
    backend.start(job(1, 2))
    assert not backend.room(job(2, 2)) and backend.room(job(2))
    backend.start(job(2))
    assert seen == ["4,5", "7"] and not backend.room(job(3)) and backend.room(job(3, cpu=True))
    seen.append("over")
    assert backend.poll([]) == {1: 0, 2: 0} and backend.free == ["4", "5", "7"]
