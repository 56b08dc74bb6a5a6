"""Jobs of a real Slurm, of several virtual nodes on this machine: arrays, ranks over nodes, preemption, time limits, nodes that die."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest

from rwkv.sweep import queue
from tests.conftest import ROOT, command, tiny, write_text
from tests.training.test_resume import losses

SCRIPT = ROOT / "scripts/slurm_test_cluster.sh"
FINISHED = "this run is finished"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of 4 nodes with 2 CPUs each; skipped where it cannot be had."""
    folder = f"/tmp/slurm-test-{os.getpid()}"  # short: sockets are in it
    env = {"SLURM_TEST_DIR": folder, "PORT": str(20_000 + os.getpid() % 20_000), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def script(*args):
        return subprocess.run(["bash", str(SCRIPT), *args], env=os.environ | env, capture_output=True, text=True, timeout=300)

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
    return ["hydra/launcher=slurm", "strategy.accelerator=cpu", "hydra.launcher.minutes=10", "hydra.launcher.poll=0.5", *changes]


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


def wait_for(condition, folder, seconds=90):
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
    """Six jobs, two at once, one of which fails; half of the work is thrown away, and only that is submitted again."""
    args = ["-m", *settings(text), *on_cluster("hydra.launcher.at_once=2"), "optim.lr=3e-3,2e-3,1e38", "--wait"]
    done = command("train", *args, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert [j["state"] for j in ledger(tmp_path)] == ["done"] * 4 + ["failed"] * 2
    assert len({j["slurm"].split("_")[0] for j in ledger(tmp_path)}) == 1, "one array"
    assert re.search(r"#5 lr=1e\+38 seed=1 failed.*\n(.*\n)*.*\| .*error: step 2: loss", done.stdout), done.stdout
    script = next(tmp_path.glob("outputs/sweeps/*/slurm/*.sh")).read_text()
    assert "#SBATCH --array=0-5%2" in script
    shutil.rmtree(tmp_path / ledger(tmp_path)[1]["run"])
    again = command("train", *args, "seed=1,2", cwd=tmp_path)
    assert "6 runs, 3 of them finished" in again.stdout and "submitted 3 as" in again.stdout, again.stdout
    assert [(j["state"], j["attempts"]) for j in ledger(tmp_path)] == [("done", n) for n in (1, 2, 1, 1)] + [("failed", 2)] * 2
    (env,) = {(tmp_path / j["run"] / "env.json").read_text() for j in ledger(tmp_path)[:1]}
    assert "commit" in json.loads(env)


@pytest.mark.slow
def test_two_nodes_four_tasks(cluster, text, tmp_path):
    args = settings(text, "precision=fp64")
    done = command("train", *args, *on_cluster("strategy=ddp", "strategy.devices=2", "strategy.nodes=2"), "--wait", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + log_of(tmp_path)
    assert "x 4 processes" in log_of(tmp_path)
    alone = losses(whole(args, tmp_path))
    assert [x for _, x in losses(the_run(tmp_path))] == pytest.approx([x for _, x in alone], rel=1e-6) and len(alone) > 5


def test_what_slurm_would_refuse(cluster, text, tmp_path):
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
        done = command("train", *settings(text), *args, change, cwd=tmp_path)
        assert done.returncode == 2 and re.search(message, done.stderr) and "Traceback" not in done.stderr, (change, done.stderr)
