"""Training on a CUDA device by the command a user types."""

import json

import pytest

from tests.conftest import command, tiny, write_text

pytestmark = pytest.mark.gpu


def losses(out):
    (run,) = out.iterdir()
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
