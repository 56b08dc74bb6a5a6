"""Jobs of a real Slurm, of several virtual nodes on this machine: arrays, ranks over nodes, preemption, time limits, nodes that die."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from rwkv import train
from rwkv.config import cli
from rwkv.sweep import queue
from tests.conftest import ROOT, command, tiny, write_text
from tests.training.runs import assert_equal_runs, losses

SCRIPT = ROOT / "scripts/slurm_test_cluster.sh"
FINISHED = "this run is finished"
TWO_NODES = "strategy=ddp", "strategy.nodes=2", "strategy.devices=1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of 4 nodes with 2 CPUs each; skipped where it cannot be had."""
    folder = f"/tmp/slurm-test-{os.getpid()}"  # short: sockets are in it
    env = {"SLURM_TEST_DIR": folder, "PORT": str(20_000 + os.getpid() % 20_000), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def script(*args):
        return subprocess.run(["bash", str(SCRIPT), *args], env=os.environ | env, capture_output=True, text=True, timeout=600)

    started = script("start")
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    before = dict(os.environ)
    os.environ.update(env, SLURM_CONF=f"{folder}/slurm.conf")
    yield script
    os.environ.clear()
    os.environ.update(before)
    script("stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def settings(text, *changes):
    """A run of seconds, on the cluster's CPUs."""
    args = tiny("model.n_layer=1", "model.n_embd=32", "model.head_size=32", "layout.rows=4", "ctx_len=16", "data=text", f"data.path={text}", *changes)
    return [a for a in args if not a.startswith("optim.lr=0.003")]


def on_cluster(*changes):
    settings = {"hydra/launcher": "slurm", "strategy.accelerator": "cpu", "hydra.launcher.minutes": "10", "hydra.launcher.poll": "0.5"}
    return [f"{key}={value}" for key, value in (settings | dict(c.split("=", 1) for c in changes)).items()]


def ledger(folder):
    (file,) = folder.glob("outputs/sweeps/*/sweep.json")
    return json.loads(file.read_text())["jobs"]


def the_run(folder):
    (run,) = folder.glob("outputs/*-text-*")
    return run


def step_of(folder):
    found = losses(the_run(folder)) if list(folder.glob("outputs/*-text-*/metrics.jsonl")) else []
    return found[-1][0] if found else 0


def log_of(folder):
    return "".join(f.read_text() for f in sorted(folder.glob("outputs/sweeps/*/slurm/*_log.out")))


def wait_for(condition, folder, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{queue.states()}\n{log_of(folder)[-4000:]}"
        time.sleep(0.1)


def finished(folder):
    return bool(list(folder.glob("outputs/*-text-*/summary.json")))


def whole(args, folder):
    """The same run, here and without interruption."""
    done = command("train", *args, f"out={folder / 'whole'}", cwd=folder)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "whole").glob("*-text-*")
    return run


@pytest.mark.slow
def test_an_array_with_a_failure_then_the_rest_again(cluster, text, tmp_path):
    """Six jobs, two at once, one of which fails; a finished one is thrown away, and only these two are submitted again."""
    args = ["-m", *settings(text), *on_cluster("hydra.launcher.at_once=2"), "optim.lr=1e-3,2e-3,3e-3,4e-3,1e38,5e-3", "--wait"]
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert [j["state"] for j in ledger(tmp_path)] == ["done"] * 4 + ["failed", "done"]
    assert len({j["slurm"].split("_")[0] for j in ledger(tmp_path)}) == 1, "one array"
    assert re.search(r"#5 lr=1e\+38 failed.*\n(.*\n)*.*\| .*error: step 2: loss", done.stdout), done.stdout
    script = next(tmp_path.glob("outputs/sweeps/*/slurm/*.sh")).read_text()
    assert "#SBATCH --array=0-5%2" in script
    shutil.rmtree(tmp_path / ledger(tmp_path)[1]["run"])
    again = command("train", *args, cwd=tmp_path)
    assert "6 runs, 4 of them finished" in again.stdout and "submitted 2 as" in again.stdout, again.stdout
    assert [(j["state"], j["attempts"]) for j in ledger(tmp_path)] == [("done", n) for n in (1, 2, 1, 1)] + [("failed", 2), ("done", 1)]
    (page,) = tmp_path.glob("outputs/sweeps/*/report.html")
    assert f"report {page.relative_to(tmp_path)}" in again.stdout and "5 done" in page.read_text() and "error: step 2: loss" in page.read_text()
    (env,) = {(tmp_path / j["run"] / "env.json").read_text() for j in ledger(tmp_path)[:1]}
    assert "commit" in json.loads(env)


@pytest.mark.slow
def test_two_nodes_four_tasks(cluster, text, tmp_path):
    """PyTorch's and DeepSpeed's ranks over two nodes each, at the same time: the losses are those of one process, and wandb has the sweep's name."""
    args = [*settings(text), *on_cluster("strategy.devices=2", "strategy.nodes=2"), "strategy=ddp,ds2", "out='outputs/${strategy.kind}'"]
    env = {"HOME": str(tmp_path)}
    done = command("train", "-m", *args, "logger=wandb", "logger.mode=offline", "--wait", cwd=tmp_path, env=env, timeout=600)
    (ledger_file,) = tmp_path.glob("outputs/**/sweep.json")
    jobs = json.loads(ledger_file.read_text())["jobs"]
    logs = [(ledger_file.parent / "slurm" / f"{job['slurm']}_0_log.out").read_text() for job in jobs]
    assert done.returncode == 0, done.stdout + "".join(logs)
    alone = [x for _, x in losses(whole(settings(text), tmp_path))]
    for job, log in zip(jobs, logs, strict=True):
        assert "x 4 processes" in log
        assert [x for _, x in losses(tmp_path / job["run"])] == pytest.approx(alone, rel=1e-4) and len(alone) > 5
        (record,) = (tmp_path / job["run"]).glob("wandb/offline-run-*/*.wandb")
        assert ledger_file.parent.name.encode() in record.read_bytes()


def long_documents(folder):
    """A run whose steps are long documents: most stops are in the middle of one."""
    return tiny("model.n_layer=1", "model.n_embd=32", "model.head_size=32", "data=tokens", f"data.path={folder / 'long.npy'}", "layout=document",
                "layout.rows=1", "ctx_len=16", "trainer.tokens=80k", "checkpoint.every=2", "name=long-text")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(its arguments, its folder)"""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "long.npy", np.random.default_rng(0).integers(1, 257, 4000).astype(np.uint16))
    return long_documents(folder), whole(long_documents(folder), folder)


def submitted(args, folder, *changes):
    """The job's id, and a function that says how often it has been started again."""
    done = command("train", *args, *on_cluster(*changes), cwd=folder)
    assert done.returncode == 0, done.stderr
    (job,) = ledger(folder)
    assert f"python -m rwkv.jobs --follow {job['slurm']}" in done.stdout
    return job["slurm"], lambda: int(re.search(r"Restarts=(\d+)", queue.ask("scontrol", "show", "job", job["slurm"]))[1])


@pytest.mark.slow
def test_a_node_dies_and_then_preemption_again_and_again(cluster, uninterrupted, tmp_path):
    """A node is lost, then five times a job of higher priority takes all nodes; each time the run is queued again once, and the weights are those
    of no interruption."""
    args, expected = uninterrupted
    job, restarts = submitted(args, tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/*-text-*/checkpoints/step-*")), tmp_path)
    node = queue.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    assert cluster("down", node).returncode == 0
    wait_for(lambda: log_of(tmp_path).count("resumed from step-") == 1, tmp_path)
    cluster("up", node)
    assert restarts() == 1 and not finished(tmp_path)
    for turn in range(1, 6):
        wait_for(lambda turn=turn: log_of(tmp_path).count("ready after") > turn or finished(tmp_path), tmp_path)
        time.sleep(0.3)
        queue.ask("sbatch", "-Q", "--wait", "-p", "high", "-N4", "--exclusive", "--output=/dev/null", "--wrap=true")
        assert restarts() == turn + 1 and not finished(tmp_path), log_of(tmp_path)
    wait_for(lambda: finished(tmp_path), tmp_path)
    assert_equal_runs(the_run(tmp_path), expected)
    log = log_of(tmp_path)
    assert log.count("resumed from step-") == restarts() == 6 and log.count("the same command goes on") == 5 and re.search(r"checkpoint step-\d+\+\d+", log)
    assert queue.states()[job][0] in ("COMPLETED", "COMPLETING", "RUNNING")


@pytest.mark.slow
def test_a_time_limit(cluster, uninterrupted, tmp_path):
    """The warning comes some ten seconds after the start: the run needs several turns, or just one if it is quick."""
    args, expected = uninterrupted
    args = [a.replace("80k", "300k") for a in args]
    _, restarts = submitted(args, tmp_path, "hydra.launcher.minutes=1", "hydra.launcher.warning_seconds=55")
    wait_for(lambda: restarts() >= 1 and "resumed from step-" in log_of(tmp_path), tmp_path)
    assert "SIGUSR2: saving a checkpoint" in log_of(tmp_path)
    mine, wanted = losses(the_run(tmp_path)), losses(expected)
    assert [step for step, _ in mine] == list(range(1, len(mine) + 1))
    command("jobs", "--cancel", "all", cwd=tmp_path)
    wait_for(lambda: not any(queue.active(queue.states(), j) for j in queue.states()), tmp_path, 30)
    assert restarts() < 10 and len(wanted) > 5, "a job that is cancelled is not queued again"


def task_of(job, rank):
    """The process of a job's task."""
    wanted = {f"SLURM_JOB_ID={job.partition('_')[0]}", f"SLURM_PROCID={rank}"}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"submitit" in (folder / "cmdline").read_bytes() and wanted <= set((folder / "environ").read_text().split("\0")):
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_killed_rank_and_no_more_restarts_than_allowed(cluster, text, tmp_path):
    """The others end with 75, or with 143 by srun, which ends with 137, and the job is queued again: as often as the launcher says, then it has failed."""
    args = settings(text, "trainer.tokens=20M", "checkpoint.every=20")
    job, restarts = submitted(args, tmp_path, *TWO_NODES, "hydra.launcher.restarts=1")
    for turn in (1, 2):
        wait_for(lambda turn=turn: log_of(tmp_path).count("ready after") == turn and "\ncheckpoint step-" in log_of(tmp_path), tmp_path)
        os.kill(task_of(job, 1), signal.SIGKILL)
        wait_for(lambda turn=turn: log_of(tmp_path).count("task 1: Killed") == turn, tmp_path)
    wait_for(lambda: not queue.active(queue.states(), job), tmp_path)
    assert restarts() == 1 and log_of(tmp_path).count("resumed from step-") == 1
    assert queue.states()[job][0] == "FAILED" and not finished(tmp_path)


@pytest.mark.slow
def test_a_rank_that_fails_by_itself_is_not_tried_for_ever(cluster, text, tmp_path):
    """The others end with 75, or with 143 by srun, but there is no checkpoint that the next try would begin with."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading\nif os.environ.get('SLURM_PROCID') == '1':\n    threading.Timer(3, os._exit, [1]).start()\n"
    )
    args = settings(text, "trainer.tokens=20M", "checkpoint.every=0")
    job, restarts = submitted(args, tmp_path, *TWO_NODES, f"hydra.launcher.setup=['export PYTHONPATH={tmp_path}']")
    wait_for(lambda: not queue.active(queue.states(), job), tmp_path)
    assert restarts() == 0 and queue.states()[job][0] == "FAILED" and "task 1: Exited with exit code 1" in log_of(tmp_path), log_of(tmp_path)


def test_what_slurm_would_refuse(cluster, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = {
        "hydra.launcher.partition=hgih": r"hydra\.launcher\.partition=hgih: this cluster has no such partition \(did you mean high\?\); it has high, main",
        "strategy.devices=auto": r"strategy\.devices=auto: a job asks for its GPUs before",
        "hydra.launcher.minutes=2": r"hydra\.launcher\.minutes=2 is over before the warning 120 s ahead of it",
        "hydra.launcher.memory_gb=9000": r"Slurm rejects the job: .*\n.*asked for: .*mem=9216000M",
        "hydra.launcher.constraint=warp": r"Slurm rejects the job: .*[Ff]eature.*\n.*constraint=warp",
        "hydra.launcher.sbatch={nonsense: 3}": r"Slurm rejects the job: .*nonsense",
        "hydra.launcher.gpus_per_node=8": r"Slurm rejects the job: .*\n.*gpus_per_node=8.*\n.*are there GPUs\?",
    }
    for change, message in cases.items():
        args = [a for a in on_cluster() if a.split("=")[0] != change.split("=")[0]]
        assert cli.guarded(train.main, [*settings(text), *args, change]) == 2
        said = capsys.readouterr().err
        assert re.search(message, said) and "Traceback" not in said, (change, said)
