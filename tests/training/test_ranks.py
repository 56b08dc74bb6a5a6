"""Two processes on gloo give what one gives, whatever documents each has."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import load
from tests.conftest import ROOT, command, the_run, tiny, write_text
from tests.training.test_resume import losses


def gradients(tmp_path, name, *args):
    out = tmp_path / f"{name}.safetensors"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/training/gradients_of_a_step.py"), str(out), *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return load_file(out)


def ragged_text(folder):
    """Documents of very different lengths: in most steps one rank has many chunks more than the other."""
    folder.mkdir()
    for i, n in enumerate((700, 30, 41, 333, 5, 64, 1200, 90, 2, 150)):
        (folder / f"{i}.txt").write_text("abcdefgh "[i % 5 :] * (n // 5))
    return folder


@pytest.mark.parametrize("layout", ["layout=document", "layout=stream"])
def test_gradients_equal_one_process(layout, tmp_path):
    text = ragged_text(tmp_path / "text")
    args = tiny(layout, "layout.rows=4", "layout.accumulate=2", "ctx_len=16", "data=text", f"data.path={text}")
    one = gradients(tmp_path, "one", *args)
    two = gradients(tmp_path, "two", *args, "strategy=ddp", "strategy.devices=2")
    assert one.keys() == two.keys() and len(one) > 10
    for name, want in one.items():
        assert (two[name] - want).norm() <= 1e-6 * want.norm(), name


def test_training_on_two_and_going_on_with_one(tmp_path):
    """Chunk counts differ between ranks in most steps; no hang, and the same losses as on one process all along."""
    text = ragged_text(tmp_path / "text")
    args = tiny("layout=document", "layout.rows=2", "ctx_len=16", "data=text", f"data.path={text}", "trainer.tokens=16k", "precision=fp64")
    whole = command("train", *args, f"out={tmp_path / 'one'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    two = command("train", *args, f"out={tmp_path / 'two'}", "strategy=ddp", "strategy.devices=2", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    a, b = losses(the_run(tmp_path / "one")), losses(the_run(tmp_path / "two"))
    assert [s for s, _ in a] == [s for s, _ in b] and len(a) > 5
    assert [x for _, x in b] == pytest.approx([x for _, x in a], rel=1e-6)


@pytest.mark.parametrize("case", ["lock", "data"])
def test_an_error_ends_all_ranks(case, tmp_path):
    """Of the first alone (another process holds the lock), or of all: one message, a user error's exit code, nobody waits."""
    args = tiny("data=text", f"data.path={tmp_path / 'text.txt'}", f"out={tmp_path / 'out'}", "strategy=ddp", "strategy.devices=2")
    holder = RunFolder.of(load(args))
    if case == "lock":
        write_text(tmp_path / "text.txt")
        holder.acquire()
    done = command("train", *args, cwd=tmp_path, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert {"lock": "is being trained by process", "data": "text.txt: no such file"}[case] in done.stderr
    assert holder.path.exists() == (case == "lock")
