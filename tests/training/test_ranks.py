"""Two processes on gloo give what one gives, whatever documents each has."""

import re
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import load
from rwkv.errors import ConfigError
from rwkv.training.loop import train_on
from rwkv.training.metrics import read
from tests.conftest import command, the_run, tiny, write_text
from tests.training import forked, gradients_of_a_step
from tests.training.bytes_of_a_step import bytes_of_a_step
from tests.training.runs import losses
from tests.training.stops_at import Stop, stops_at, what_was_read


def gradients(folder, strategies, *args, world=1, timeout=300):
    """Of one step, with its loss and norm, under each strategy."""
    processes = forked.ranks(world, gradients_of_a_step.main, folder, strategies, [*args, f"strategy.devices={world}"], log=folder / "log")
    assert forked.codes(processes, timeout) == [0] * world, [log.read_text() for log in folder.glob("log-*")]
    return [load_file(folder / f"{i}.safetensors") for i in range(len(strategies))]


def assert_equal_gradients(got, want, bound=1e-6):
    assert want.keys() <= got.keys() and len(want) > 10
    assert all(not got[name].any() for name in got.keys() - want.keys())  # weights that take no part
    for name, x in want.items():
        assert (got[name] - x).norm() <= bound * x.norm(), name


def ragged_text(folder):
    """Documents of very different lengths: in most steps one rank has many chunks more than the other."""
    folder.mkdir()
    for i, n in enumerate((700, 30, 41, 333, 5, 64, 1200, 90, 2, 150)):
        (folder / f"{i}.txt").write_text("abcdefgh "[i % 5 :] * (n // 5))
    return folder


CASES = [
    ("ddp", "layout=document"),
    ("ddp", "layout=stream"),
    ("fsdp", "layout=document", "bptt.recompute=selective"),
    ("fsdp", "layout=document", "bptt.recompute=true", "arch=v6"),
    ("ds1", "layout=document", "bptt.recompute=selective"),
    ("ds2_offload", "layout=document"),
    ("ds3", "layout=document", "bptt.recompute=true"),
]


@pytest.mark.parametrize("strategy, case", [pytest.param(s, c, marks=pytest.mark.slow if s != "ddp" else ()) for s, *c in CASES])
def test_gradients_equal_one_process(strategy, case, tmp_path):
    """Of one optimizer step, the norm that clipping goes by included, where one rank has many chunks more than the other."""
    text = ragged_text(tmp_path / "text")
    args = tiny("layout.rows=4", "layout.accumulate=2", "ctx_len=32", "data=text", f"data.path={text}", *case)
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    (two,) = gradients(tmp_path, [f"strategy={strategy}"], *args, world=2)
    assert_equal_gradients(two, one)


PLAIN_LINEAR = "strategy.deepspeed={zero_optimization:{memory_efficient_linear:false}}"  # its own rounds differently in bf16


@pytest.mark.slow
@pytest.mark.parametrize("precision, recompute", [("bf16", "false"), ("bf16-mixed", "true")])
def test_gradients_of_bf16_weights_are_summed_in_fp32(precision, recompute, tmp_path):
    """Over chunks, rows computed one by one, and ranks."""
    text, settings = ragged_text(tmp_path / "text"), (f"precision={precision}", f"bptt.recompute={recompute}")
    args = tiny("layout.rows=4", "layout=document", "layout.at_once=1", "ctx_len=128", "data=text", f"data.path={text}", *settings)
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    strategies = ["strategy=ddp", "strategy=fsdp", "strategy=ds1", "strategy=ds2", f"strategy=ds3 {PLAIN_LINEAR}"]
    for two in gradients(tmp_path, strategies, *args, world=2):
        assert_equal_gradients(two, one)


@pytest.mark.slow
def test_four_processes(tmp_path):
    """Of very different numbers of chunks, one of them of none at all in a batch."""
    text = ragged_text(tmp_path / "text")
    args = tiny("layout.rows=4", "layout.accumulate=2", "layout=document", "ctx_len=64", "data=text", f"data.path={text}")
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    for four in gradients(tmp_path, ["strategy=ddp", "strategy=ds2", "strategy=ds3"], *args, world=4):
        assert_equal_gradients(four, one)


@pytest.mark.parametrize(("strategy", "least"), [("ddp", 0.99), pytest.param("ds2", 0.95, marks=pytest.mark.slow), pytest.param("ds3", 0.75, marks=pytest.mark.slow)])
def test_the_bytes_logged_are_those_that_pass(strategy, least, tmp_path):
    """Of a step of two batches of two chunks. DeepSpeed's stage 3 passes fewer where the model is small: it keeps some weights gathered."""
    several = f"strategy={strategy}", "strategy.devices=2", "layout.chunks=2", "layout.accumulate=2"
    args = tiny("data=text", f"data.path={write_text(tmp_path / 'text.txt')}", f"out={tmp_path / 'out'}", *several)
    assert forked.codes(forked.ranks(2, bytes_of_a_step, args, tmp_path / "bytes", log=tmp_path / "log")) == [0, 0], (tmp_path / "log-0").read_text()
    logged = {r["comm_bytes"] for r in read(the_run(tmp_path / "out") / "metrics.jsonl") if "train/loss" in r}
    assert len(logged) == 1 and least < int((tmp_path / "bytes").read_text()) / logged.pop() < 1.01


@pytest.mark.slow
def test_swapping_to_a_disk(tmp_path):
    """With shares so large that DeepSpeed does swap them; the operator is compiled where it can be, which takes minutes once."""
    if not pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder().is_compatible():
        pytest.skip("no libaio-dev here")
    args = tiny("model.n_embd=192", "data=text", f"data.path={ragged_text(tmp_path / 'text')}", "precision=bf16", "layout.at_once=1")
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    (swap := tmp_path / "swap").mkdir()
    (two,) = gradients(tmp_path, [f"strategy=ds3_nvme strategy.swap={swap} {PLAIN_LINEAR}"], *args, world=2, timeout=1200)
    assert_equal_gradients(two, one)
    assert not list(swap.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "precision", "turns"),
    [
        ("document", "fp64", "ddp 4, auto 1, ddp 2"),
        ("document", "fp64", "fsdp 2, auto 1"),
        ("document", "fp32", "ds2 2, ddp 1"),
        ("document", "fp32", "ds3 2, ds3 4"),
        ("stream", "fp64", "ddp 2, auto 1, ddp 4"),
    ],
)
def test_going_on_with_other_strategies_and_processes(layout, precision, turns, tmp_path):
    """Stopped inside a step of many chunks, of which one rank has more, or of layout=stream with states that go on, each its lane's:
    the same tokens and the same losses all along as of one process."""
    text = ragged_text(tmp_path / "text")
    ctx_len = 64 if "ds" in turns else 16  # with DeepSpeed a step that was stopped inside is done again
    args = tiny(f"layout={layout}", "layout.rows=4", f"ctx_len={ctx_len}", "data=text", f"data.path={text}", "trainer.tokens=8k", f"precision={precision}")
    turns = [turn.split() for turn in turns.split(", ")]
    for steps, (strategy, world) in enumerate(turns, 2):
        stop = Stop(steps, 0 if layout == "document" else None) if steps <= len(turns) else None
        now = [*args, f"out={tmp_path / 'out'}", f"strategy={strategy}", f"strategy.devices={world}"]
        codes = forked.codes(forked.ranks(int(world), stops_at, now, stop, tmp_path / "reads", log=tmp_path / "log"))
        assert codes == [128 + stop.number if stop else 0] * int(world), (tmp_path / "log-0").read_text()
    log = (tmp_path / "log-0").read_text()
    assert log.count("resumed from step-") == len(turns) - 1 and bool(re.search(r"checkpoint step-\d+\+", log)) == (ctx_len == 16 and layout == "document")
    assert forked.codes(forked.ranks(1, stops_at, [*args, f"out={tmp_path / 'one'}"], None, tmp_path / "one-reads", log=tmp_path / "log")) == [0]
    assert what_was_read(tmp_path / "reads") == what_was_read(tmp_path / "one-reads")
    a, b = losses(the_run(tmp_path / "one")), losses(the_run(tmp_path / "out"))
    assert [s for s, _ in a] == [s for s, _ in b] and len(a) > len(turns) + 1
    assert [x for _, x in b] == pytest.approx([x for _, x in a], rel=1e-6)


def test_as_many_processes_as_there_are_devices_may_not_go_with_the_rows():
    """strategy.devices=auto: how many is known only when they are there."""
    cfg = load(tiny("strategy=ddp", "layout.rows=4"))
    ranks = SimpleNamespace(world=3, together=lambda action: action())
    with pytest.raises(ConfigError, match=r"layout\.rows=4 cannot be dealt equally to 3 processes \(strategy\.devices=3, strategy\.nodes=1\): set layout\.rows=3 or"):
        train_on(ranks, cfg, [], None, 0.0)


@pytest.mark.parametrize("case", ["lock", "data"])
def test_an_error_ends_all_ranks(case, tmp_path):
    """Of the first alone (another process holds the lock), or of all: one message, a user error's exit code, nobody waits."""
    args = tiny("data=text", f"data.path={tmp_path / 'text.txt'}", f"out={tmp_path / 'out'}", "strategy=ddp", "strategy.devices=2")
    holder = RunFolder.of(load(args))
    if case == "lock":
        write_text(tmp_path / "text.txt")
        holder.acquire()
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert {"lock": "is being trained by process", "data": "text.txt: no such file"}[case] in done.stderr
    assert holder.path.exists() == (case == "lock")
