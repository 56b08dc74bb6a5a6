"""Training on a CUDA device by the command a user types."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, command, the_run, tiny, write_text

pytestmark = pytest.mark.gpu


def losses(out):
    run = the_run(out)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r["train/loss"] for r in records if "train/loss" in r]


@pytest.mark.parametrize(("precision", "recompute"), [("fp32", "false"), ("bf16", "true")])
def test_learns_and_its_losses_are_those_of_the_cpu(precision, recompute, tmp_path):
    write_text(tmp_path / "text.txt")
    found = {}
    for device, visible in (("gpu", "0"), ("cpu", "")):
        args = tiny(
            "data=text", f"data.path={tmp_path}/text.txt", f"out={tmp_path}/{device}", f"precision={precision}",
            f"bptt.recompute={recompute}", "layout.chunks=4", "trainer.tokens=16k",
        )  # fmt: skip
        done = command("train", *args, cwd=tmp_path, timeout=300, env={"CUDA_VISIBLE_DEVICES": visible})
        assert done.returncode == 0, done.stderr
        found[device] = losses(tmp_path / device)
    assert found["gpu"][-1] < found["gpu"][0] - 1
    apart = [abs(a - b) for a, b in zip(found["gpu"], found["cpu"], strict=True)]
    assert max(apart[:8]) < (1e-4 if precision == "fp32" else 2e-2)
    assert max(apart) < 0.1  # rounding grows from step to step


def test_certificate(tmp_path):
    for precision in ("fp32", "bf16"):
        done = command("certify", "ctx_len=64", f"precision={precision}", cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr


def test_stopped_inside_a_document_and_taken_up_again(tmp_path):
    """States on the host, moments on the device: the resumed run's losses are those of the one that was not stopped."""
    write_text(tmp_path / "text.txt")

    def args(out):
        return tiny(
            "data=text", f"data.path={tmp_path}/text.txt", f"out={tmp_path}/{out}", "layout=document", "layout.rows=1", "ctx_len=64",
            "trainer.tokens=180k", "bptt.states=host", "checkpoint.every=1",
        )  # fmt: skip

    assert command("train", *args("whole"), cwd=tmp_path, timeout=300).returncode == 0
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "rwkv.train", *args("stopped")], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("stopped/*/checkpoints/step-00000001")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(1.0)  # into the second document
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert "checkpoint step-0000000" in said and "+" in said.split("checkpoint step")[-1]
    done = command("train", *args("stopped"), cwd=tmp_path, timeout=300)
    assert "resumed from" in done.stdout, done.stdout + done.stderr
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
