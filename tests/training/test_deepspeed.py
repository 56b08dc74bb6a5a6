"""What DeepSpeed is told, and what its disks must be."""

import shutil
from types import SimpleNamespace

import pytest

from rwkv.config.compose import load
from rwkv.errors import ConfigError
from rwkv.training.strategies import swap
from rwkv.training.strategies.ds_config import ds_config


def test_further_settings_are_joined():
    told = ds_config(load(["strategy=ds2", "strategy.deepspeed={zero_optimization: {overlap_comm: true}, dump_state: true}"]))
    assert told["zero_optimization"] == {"stage": 2, "overlap_comm": True} and told["dump_state"] is True


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{zero_optimization: {stage: 3}}", r"strategy\.deepspeed\.zero_optimization\.stage=3: .*; set strategy"),
        ("{gradient_accumulation_steps: 4}", r"strategy\.deepspeed\.gradient_accumulation_steps=4: .*; set layout\.accumulate"),
        ("{bf16: {enabled: true}}", r"strategy\.deepspeed\.bf16\.enabled=True: .*; leave it out"),
    ],
)
def test_what_other_settings_say_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        ds_config(load(["strategy=ds2", f"strategy.deepspeed={given}"]))


def test_swapping_needs_an_operator_and_says_which_package(monkeypatch):
    builder = pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder
    monkeypatch.setattr(builder, "is_compatible", lambda self: False)
    with pytest.raises(ConfigError, match="apt-get install libaio-dev"):
        swap.load_operator()


def test_swapping_needs_room_on_a_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(swap, "load_operator", lambda: None)
    at = lambda path: load(["strategy=ds3_nvme", f"strategy.swap={path}"]).strategy
    found = swap.folder(at(tmp_path / "new"), 10**6)
    assert found.parent == tmp_path / "new" and found != swap.folder(at(tmp_path / "new"), 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(ConfigError, match=r"needs 1\.6 TB there on each node, and 1 GB are free"):
        swap.folder(at(tmp_path), 10**11)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"strategy\.swap=.*file: .*; set strategy\.swap"):
        swap.folder(at(tmp_path / "file"), 10**6)
