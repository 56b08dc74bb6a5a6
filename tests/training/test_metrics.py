"""The records of a run, and the same in wandb."""

import importlib.util

import pytest

from rwkv.config.compose import load
from rwkv.errors import ConfigError
from rwkv.training.metrics import start_wandb
from tests.conftest import command, tiny, write_text

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="the package wandb is not installed")


def test_wandb_offline(tmp_path):
    path = write_text(tmp_path / "text.txt")
    args = tiny("data=text", f"data.path={path}", f"out={tmp_path / 'out'}", "logger=wandb", "logger.mode=offline")
    done = command("train", *args, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("out/*/wandb/offline-run-*/*.wandb")
    assert b"train/loss" in record.read_bytes()


def test_wandb_without_a_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"logger=wandb logger\.mode=online: .*API key.* logger\.mode=offline needs neither"):
        start_wandb(load(["logger=wandb"]), tmp_path, "abc")
