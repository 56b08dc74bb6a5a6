"""What DeepSpeed is told, and what its disks must be."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkv.config.compose import load
from rwkv.errors import ConfigError
from rwkv.training.strategies import swap
from rwkv.training.strategies.ds_config import ds_config
from tests.conftest import tiny
from tests.training import forked


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


def without_operator(args: list[str]) -> int:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    AsyncIOBuilder.is_compatible = lambda self: False
    return forked.train(args)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [("ds3_nvme", "needs libaio"), ("ds2 strategy.deepspeed={steps_per_print:1}", "strategy.deepspeed.steps_per_print=1: other settings"),
     ("ds2 strategy.deepspeed={zero_optimization:{nonsense:1}}", "strategy.deepspeed.zero_optimization: DeepSpeed refuses nonsense=1: extra inputs"),
     ("ds2 strategy.deepspeed={zero_optimisation:{overlap_comm:true}}", "zero_optimisation: DeepSpeed has no such setting (did you mean strategy.deepspeed.zero_o"),
     ("ds2 strategy.deepspeed={chekpointing:{}}", "DeepSpeed has no such setting (did you mean strategy.deepspeed.checkpoint?); it has activation_"),
     ("ds2 strategy.deepspeed={comms_logger:{enabled:perhaps}}", "strategy.deepspeed.comms_logger: DeepSpeed refuses enabled=perhaps: input should be a valid boolean"),
     ("ds2 strategy.deepspeed={sparse_attention:{mode:dense}}", "strategy.deepspeed={'sparse_attention': {'mode': 'dense'}}: DeepSpeed refuses it: "),
     ("ds2 strategy.deepspeed={zero_optimization:{overlap_comm:perhaps}}", "DeepSpeed refuses overlap_comm=perhaps: input should be a valid boolean")],
)
def test_what_a_strategy_lacks_is_said_before_data_is_read(strategy, message, tmp_path):
    pytest.importorskip("deepspeed")
    args = tiny("data=text", f"data.path={tmp_path / 'missing'}", f"out={tmp_path / 'out'}", *f"strategy={strategy}".split())
    assert forked.codes([forked.start(without_operator, args, log=tmp_path / "log")]) == [2]
    log = (tmp_path / "log").read_text()
    assert message in log and "missing" not in log


def without_a_library(args: list[str]) -> int:
    class Broken:
        def find_spec(self, name, *_):
            if name == "deepspeed":
                raise ImportError("libcudart.so.12: cannot open shared object file")

    sys.meta_path.insert(0, Broken())
    return forked.train(args)


def test_deepspeed_that_does_not_work_here(tmp_path):
    args = tiny("data=text", f"data.path={tmp_path / 'missing'}", f"out={tmp_path / 'out'}", "strategy=ds2_offload")
    assert forked.codes([forked.start(without_a_library, args, log=tmp_path / "log")]) == [2]
    log = (tmp_path / "log").read_text()
    assert log.startswith("error: strategy=ds2_offload: DeepSpeed cannot be imported: libcudart.so.12: cannot open shared object file; ") and "set strategy=fsdp" in log


def settings_with(swap_folder):
    return load(["strategy=ds3_nvme", f"strategy.swap={swap_folder}"]).strategy


def test_swapping_needs_room_on_a_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(swap, "load_operator", lambda build: None)
    swap.check(settings_with(tmp_path / "new"), 10**6)
    assert not (tmp_path / "new").exists()
    assert swap.folder(settings_with(tmp_path / "new" / "and")).parent == tmp_path / "new" / "and"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(ConfigError, match=r"needs 1\.6 TB there on each node, and 1 GB are free"):
        swap.check(settings_with(tmp_path), 10**11)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"strategy\.swap=.*file: .*; set strategy\.swap"):
        swap.check(settings_with(tmp_path / "file"), 10**6)


def holds_swap_folders(parent: Path, ready: Path) -> None:
    for _ in range(2):
        (swap.folder(settings_with(parent)) / "moments").write_text("much")
    ready.write_text("")
    time.sleep(60)


def test_what_a_killed_run_left_on_the_disk_is_removed(monkeypatch, tmp_path):
    """By the next one, which leaves alone what a living process has, and what is none of this program's."""
    (tmp_path / "swap" / "photographs").mkdir(parents=True)
    processes = [forked.start(holds_swap_folders, tmp_path / "swap", tmp_path / name, log=tmp_path / "log") for name in ("killed", "alive")]
    while not all((tmp_path / name).exists() for name in ("killed", "alive")):
        time.sleep(0.01)
    left = lambda: len(list((tmp_path / "swap").glob(f"{swap.PREFIX}*/moments")))
    swap.clean(tmp_path / "swap")
    assert left() == 4
    forked.codes(processes[:1], 0)
    monkeypatch.setattr(swap, "load_operator", lambda build: None)
    swap.check(settings_with(tmp_path / "swap"), 10**6)
    assert left() == 2
    os.kill(processes[1].pid, signal.SIGINT)
    assert forked.codes(processes[1:]) != [None]
    assert [f.name for f in (tmp_path / "swap").iterdir()] == ["photographs"]


@pytest.mark.parametrize("extension", ["async_io", "pin_memory"])
def test_a_lock_that_a_killed_compilation_left_is_removed(extension, monkeypatch, tmp_path):
    """PyTorch would wait for it for ever, and say nothing."""
    builder = pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    left, loaded = tmp_path / extension / "lock", []
    left.parent.mkdir()
    left.touch()
    monkeypatch.setattr(builder, "is_compatible", lambda self: True)
    monkeypatch.setattr(builder, "load", lambda self, verbose: loaded.append(left.exists()))
    swap.load_operator()
    assert loaded == [False]
