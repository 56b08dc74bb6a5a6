"""The records of a run, and the same in wandb."""

import importlib.util

import pytest

from rwkv import train
from rwkv.config import cli
from rwkv.config.compose import load
from rwkv.errors import ConfigError
from rwkv.training.metrics import start_wandb
from tests.conftest import command, the_run, tiny, write_text
from tests.training.runs import losses

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="the package wandb is not installed")


@pytest.fixture(autouse=True)
def service():
    """Ended with the test: what processes started later would find of it in the environment is gone too."""
    yield
    import wandb

    wandb.teardown()


@pytest.mark.slow
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


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_run_without_wandb_completes(fails, tmp_path, monkeypatch, capsys):
    """Not reached at the start, or lost on the way: the records are kept here."""
    import wandb

    def lost(*_, mode="online", **__):
        if mode == "online":
            raise wandb.errors.CommError("connection refused")
        return start(*_, mode=mode, **__)

    start = wandb.init
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(*((wandb, "init", lost) if fails == "init" else (wandb.Run, fails, lost)))
    args = tiny("data=text", f"data.path={write_text(tmp_path / 'text.txt')}", f"out={tmp_path / 'out'}", "logger=wandb", "sample.tokens=0")
    assert cli.guarded(train.main, [*args, f"logger.mode={'online' if fails == 'init' else 'offline'}"]) == 0
    assert capsys.readouterr().err.count("warning: wandb") == 1
    assert [step for step, _ in losses(the_run(tmp_path / "out"))] == list(range(1, 21))
    assert bool(list(tmp_path.glob("out/*/wandb/offline-run-*")))
    monkeypatch.undo()
    wandb.finish()
