"""Two processes on gloo give what one gives, whatever documents each has."""

import signal

import pytest
from safetensors.torch import load_file

from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import load
from tests.conftest import command, the_run, tiny, write_text
from tests.training import forked, gradients_of_a_step
from tests.training.test_resume import losses, start, wait_for_step


def gradients(folder, strategies, *args, world=1, timeout=120):
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


@pytest.mark.parametrize("strategy, case", [(s, c) for s, *c in CASES])
def test_gradients_equal_one_process(strategy, case, tmp_path):
    """Of one optimizer step, the norm that clipping goes by included, where one rank has many chunks more than the other."""
    text = ragged_text(tmp_path / "text")
    args = tiny("layout.rows=4", "layout.accumulate=2", "ctx_len=32", "data=text", f"data.path={text}", *case)
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    (two,) = gradients(tmp_path, [f"strategy={strategy}"], *args, world=2)
    assert_equal_gradients(two, one)


PLAIN_LINEAR = "strategy.deepspeed={zero_optimization:{memory_efficient_linear:false}}"  # its own rounds differently in bf16


@pytest.mark.parametrize("precision, recompute", [("bf16", "false"), ("bf16-mixed", "true")])
def test_gradients_of_bf16_weights_are_summed_in_fp32(precision, recompute, tmp_path):
    """Over chunks, rows computed one by one, and ranks."""
    text, settings = ragged_text(tmp_path / "text"), (f"precision={precision}", f"bptt.recompute={recompute}")
    args = tiny("layout.rows=4", "layout=document", "layout.at_once=1", "ctx_len=128", "data=text", f"data.path={text}", *settings)
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    strategies = ["strategy=ddp", "strategy=fsdp", "strategy=ds1", "strategy=ds2", f"strategy=ds3 {PLAIN_LINEAR}"]
    for two in gradients(tmp_path, strategies, *args, world=2):
        assert_equal_gradients(two, one)


def test_four_processes(tmp_path):
    """Of very different numbers of chunks, one of them of none at all in a batch."""
    text = ragged_text(tmp_path / "text")
    args = tiny("layout.rows=4", "layout.accumulate=2", "layout=document", "ctx_len=64", "data=text", f"data.path={text}")
    (one,) = gradients(tmp_path, ["strategy=auto"], *args)
    for four in gradients(tmp_path, ["strategy=ddp", "strategy=ds2", "strategy=ds3"], *args, world=4):
        assert_equal_gradients(four, one)


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


@pytest.mark.parametrize(
    "strategy, precision, then, rows",
    [("ddp", "fp64", "auto", 2), ("fsdp", "fp64", "auto", 2), ("ds2", "fp32", "ddp strategy.devices=1", 2), ("ds3", "fp32", "ds3 strategy.devices=4", 4)],
)
def test_going_on_with_other_strategies_and_processes(strategy, precision, then, rows, tmp_path):
    """Stopped inside a step of many chunks, of which one rank of two has more; then others go on: the losses of one process all along."""
    text = ragged_text(tmp_path / "text")
    settings = "layout=document", f"layout.rows={rows}", f"ctx_len={8 * rows}", f"trainer.tokens={3 * rows}k", f"precision={precision}"
    args = tiny(*settings, "data=text", f"data.path={text}")
    whole = command("train", *args, f"out={tmp_path / 'one'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    on_two = [f"out={tmp_path / 'two'}", f"strategy={strategy}", "strategy.devices=2"]
    process = start([*args, *on_two], tmp_path)
    wait_for_step(RunFolder.of(load([*args, *on_two])).path, 2, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out
    rest = command("train", *args, f"out={tmp_path / 'two'}", *f"strategy={then}".split(), cwd=tmp_path)
    assert rest.returncode == 0 and "resumed from step-" in rest.stdout, rest.stdout + rest.stderr
    a, b = losses(the_run(tmp_path / "one")), losses(the_run(tmp_path / "two"))
    assert [s for s, _ in a] == [s for s, _ in b] and len(a) > 3
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
