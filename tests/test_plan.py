"""python -m rwkv.plan: what is printed, for which machine, and what training says of it."""

import json
import re
import sys

import pytest
import torch

from rwkv import plan
from rwkv.config import cli
from rwkv.training.metrics import read
from rwkv.training.planning.fit import KINDS
from tests.conftest import command

H100S = ["plan.gpu=h100", "plan.gpus=8", "plan.host_memory=2TB", "precision=bf16", "layout.rows=8"]


def planned(capsys, *args: str) -> dict:
    plan.main([*args, "--json"])
    return json.loads(capsys.readouterr().out)


def test_tables_in_80_columns(capsys):
    assert plan.main(["model=7b", "data=pile", "tokenizer=world", "strategy=ds3", *H100S]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("7,199,932,416 parameters", "optimizer", "activations", "logits", "in all", "FLOPs", "checkpoint", "ds3_offload", "It fits"):
        assert word in text, word


def test_what_does_not_fit_is_told_with_what_would(capsys):
    found = planned(capsys, "model=7b", "strategy=ds3", "plan.gpu=rtx4090", "plan.gpus=1", "precision=bf16")
    assert not found["chosen"]["fits"] and "on a GPU" in found["chosen"]["why_not"] and found["remedies"]
    found = planned(capsys, "model=14b", "tokenizer=world", *H100S[:2], "precision=bf16")
    assert not found["chosen"]["fits"] and any("fsdp" in r for r in found["remedies"])
    assert {s["strategy"]: s["fits"] for s in found["strategies"]}["ddp"] is False


def test_a_newcomers_screen_of_what_does_not_fit(capsys):
    """What is needed of what there is, what to do, and nothing between the ranks of one process."""
    assert plan.main(["model=14b", "strategy=ds3", "plan.gpu=none", "plan.host_memory=16GB"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    for word in ("16 GB of host memory free", "between ranks nothing", "GB on a host of 16 GB", "Take a smaller model=, precision=bf16, or",
                 "strategy=ds3 shares this out over GPUs", "plan.gpus=8"):  # fmt: skip
        assert word in text, word
    assert plan.main(["model=14b", "plan.gpu=none", "plan.host_memory=16GB", "precision=bf16"]) == 1
    assert "Take a smaller model=, or a machine" in " ".join(capsys.readouterr().out.split())


def test_what_settings_contradict_has_no_memory(capsys):
    assert plan.main(["strategy=ds3", "bptt.recompute=selective", "plan.gpu=h100"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "It cannot run: strategy=ds3 with bptt.recompute=selective" in text and "memory of a rank" not in text and "not fit:" not in text


def test_rows_that_cannot_be_dealt_equally_are_said(capsys):
    assert plan.main(["strategy=ddp", "plan.gpu=h100", "plan.gpus=3"]) == 0
    assert "layout.rows=8 cannot be dealt equally to 3 processes: planned with 9." in capsys.readouterr().out.replace("\n", " ")
    assert plan.main(["strategy=ddp", "plan.gpu=h100", "plan.gpus=4"]) == 0
    assert "dealt" not in capsys.readouterr().out


@pytest.mark.parametrize("rows", [8, 2400])
@pytest.mark.parametrize("gpus", [8, 16])
def test_the_largest_that_would_fit_does(gpus, rows, capsys):
    """Where it is a hundred times as long, or fewer rows than here, or there are more ranks than rows."""
    args = "model=7b", "strategy=fsdp", "bptt.recompute=true", "precision=bf16", "plan.gpu=h100", f"plan.gpus={gpus}"
    largest = planned(capsys, *args, f"layout.rows={rows}")["largest"]
    for change in [[f"layout.rows={largest['layout.rows']}"], [f"layout.rows={rows}", f"ctx_len={largest['ctx_len']}"]]:
        memory = planned(capsys, *args, *change)["chosen"]["memory_per_rank"]["device"]
        assert 0.95 < sum(memory.values()) / (79.1 * 2**30) < 1.005, change


def fitting(found: dict) -> set[str]:
    return {s["strategy"] for s in found["strategies"] if s["fits"]}


def test_what_cannot_run_here_does_not_fit(monkeypatch, capsys, tmp_path):
    """On this machine, nothing being compiled or made for it; on one described, what is installed here does not count."""
    builder = pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder
    capsys.readouterr()  # imported for the first time, it talks
    for compatible in (True, False):
        monkeypatch.setattr(builder, "is_compatible", lambda self, compatible=compatible: compatible)
        monkeypatch.setattr(builder, "load", lambda self, **_: pytest.fail("compiled"))
        here, described = (planned(capsys, "strategy=ds3_nvme", f"strategy.swap={tmp_path / 'swap'}", *extra) for extra in ([], ["plan.gpu=h100"]))
        assert fitting(described) == set(KINDS) and fitting(here) == set(KINDS) - (set() if compatible else {"ds3_nvme"})
    assert "needs libaio" in here["chosen"]["why_not"] and len(here["remedies"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert plan.main(["strategy=ds3_nvme"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "no: async_io needs libaio and a compiler" in text and "It cannot run here: strategy=ds3_nvme: DeepSpeed's operator" in text


def test_deepspeed_that_is_not_here(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert fitting(planned(capsys)) == {"auto", "ddp", "fsdp"} and fitting(planned(capsys, "plan.gpu=h100")) == set(KINDS)
    assert plan.main([]) == 0
    assert capsys.readouterr().out.count("no: DeepSpeed is not installed") == 6


def test_time_from_a_rate_and_from_mfu(capsys):
    found = planned(capsys, "plan.rate=1000", "trainer.tokens=1M")
    assert found["seconds"] == 1000 and found["rate_source"] == "plan.rate"
    found = planned(capsys, "model=0.1b", "plan.gpu=h100", "plan.mfu=0.4")
    assert found["tokens_per_sec"] == pytest.approx(0.4 * 989e12 / found["flops_per_token"]["model"])


def test_an_earlier_run_tells_its_rate(tiny_run, capsys):
    settings = ["threads=1", "model.n_layer=2", "model.n_embd=64", "layout.rows=2", "ctx_len=32", f"out={tiny_run.parent}"]
    assert "measured: " in planned(capsys, *settings, "optim.lr=1e-4")["rate_source"]
    assert "measured: " not in planned(capsys, *settings[:-2], "ctx_len=64", settings[-1])["rate_source"]


def test_training_says_plan_against_measured(tiny_run):
    (record,) = (r for r in read(tiny_run / "metrics.jsonl") if "plan/memory" in r)
    assert record["step"] == 20 and record["peak_memory"] > 0 and record["step_seconds"] > 0
    assert json.loads((tiny_run / "summary.json").read_text())["plan"]["plan/memory"] == record["plan/memory"]
    assert re.search(r"^plan   .* a rank at most, measured ", (tiny_run / "train.log").read_text(), re.MULTILINE)


def test_a_plan_has_the_runs_signature(tiny_run, capsys):
    """`plan.` settings are none of it."""
    one, two = (planned(capsys, *extra)["run"] for extra in ((), ("plan.gpu=h100", "plan.rate=5")))
    assert one == two


@pytest.mark.parametrize(
    "argument, message",
    [
        ("plan.gpu=v100", r"plan\.gpu='v100': no such GPU is known; known are b200, .*, and none for CPUs; for another, .* set plan\.memory="),
        ("plan.host_memory=lots", r"plan\.host_memory='lots': this is no size; sizes are written as 80GB"),
        ("plan.rate=5 plan.mfu=0.4", r"plan\.rate= and plan\.mfu= .*; keep one"),
        ("plan.document=64k", r"plan\.document=65536 is for layout=document, and layout is stream"),
        ("plan.gpsu=8", r"plan\.gpsu: unknown setting \(did you mean plan\.gpu"),
        ("plan.mfu=2", r"plan\.mfu=2.*less than or equal to 1"),
        ("plan.memory=80GB", r"plan\.memory=80 GB: of which GPU\? plan\.gpu="),
        ("--jason", r"--jason: unknown flag"),
        ("modle=7b", r"did you mean model"),
        ("model=from_file", r"with model=from_file a file is needed: model\.path="),
    ],
)
def test_bad_input(argument, message, capsys):
    assert cli.guarded(plan.main, argument.split()) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_the_settings_say_of_this_machine_and_it_has_not(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.guarded(plan.main, ["strategy.accelerator=cuda"]) == 2
    assert "strategy.accelerator=cuda: PyTorch finds no CUDA device here" in capsys.readouterr().err
    assert plan.main(["strategy.accelerator=cuda", "plan.gpu=h100"]) == 0 and plan.main(["strategy.accelerator=cuda", "plan.gpu=none"]) == 0


def test_help():
    done = command("plan", "--help", cwd=".")
    assert done.returncode == 0 and "plan.gpu=NAME" in done.stdout and "h100" in done.stdout
