"""scripts/loss_compare.py: equal to the bit, or by how much not, and how much that is."""

import re
import subprocess
import sys

from tests.conftest import ROOT, tiny, write_text


def compared(*args, folder):
    text = write_text(folder / "text.txt")
    script = [sys.executable, "scripts/loss_compare.py", *args, "--", *tiny("data=text", f"data.path={text}", "trainer.tokens=320", "trainer.val_tokens=64")]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_equal_settings_are_equal(tmp_path):
    done = compared("--equal", "threads=1", "trainer.val_every=2", folder=tmp_path)
    assert done.returncode == 0 and "| 1 to 5 |" in done.stdout and "+0.00000" in done.stdout and "Equal to the bit." in done.stdout, done.stderr


def test_other_settings_are_not_and_noise_is_said(tmp_path):
    done = compared("--equal", "--seeds", "1", "--write", str(tmp_path / "table.md"), "optim.lr=3e-3", "optim.lr=1e-2", folder=tmp_path)
    assert done.returncode == 1 and "Not equal to the bit." in done.stdout, done.stderr
    (row,) = re.findall(r"\| 1 to 5 \| (\d\.\d{4}) \| ([+-]\d\.\d{5}) \| (\d\.\d{5}) \|", (tmp_path / "table.md").read_text())
    assert float(row[1]) != 0 and float(row[2]) > 0


def test_a_run_that_fails_is_named(tmp_path):
    done = compared("threads=1", "model.n_layer=x", folder=tmp_path)
    assert done.returncode == 1 and "error: " in done.stderr and "model.n_layer=x" in done.stderr.splitlines()[-1]
