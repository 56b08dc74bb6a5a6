"""Steps that are not finite, or spike: what enters the weights, what is recorded, when training ends."""

import json

import pytest
import torch

from rwkv import train
from rwkv.checkpoint import shards, store
from rwkv.config import cli
from rwkv.config.compose import load
from rwkv.training.guard import LEAST, WINDOW, Guard
from rwkv.training.step import Step
from tests.conftest import the_run, tiny, write_text
from tests.training import forked
from tests.training.bad_on_a_rank import bad_on_a_rank
from tests.training.runs import losses


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains, the steps named (1-based, in the order they are taken) made bad at their end by `poison`. Returns (code, folder, records)."""
    text = write_text(tmp_path / "text.txt")

    def go(*args: str, bad=(), poison=None, name="out"):
        taken = iter(range(1, 10**6))

        def advance(step):
            original(step)
            if step.done and next(taken) in bad:
                poison(step)

        original = Step.advance
        monkeypatch.setattr(Step, "advance", advance)
        code = cli.guarded(train.main, tiny("data=text", f"data.path={text}", f"out={tmp_path / name}", *args))
        monkeypatch.setattr(Step, "advance", original)
        folder = the_run(tmp_path / name)
        return code, folder, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return go


def poison_loss(step):
    step.loss += float("nan")


def poison_gradient(step):
    next(step.strategy.model.parameters()).grad.view(-1)[3] = float("nan")


def poison_state(step):
    step.carry.wkv[0, 0, 0, 0, 0] = float("inf")


def spike(step):
    for p in step.strategy.model.parameters():
        if p.grad is not None:
            p.grad *= 1000


def weights(folder):
    return dict(shards.Tensors(store.points(folder / "checkpoints")[0], "model"))


@pytest.mark.parametrize("poison", [poison_loss, poison_gradient, poison_state])
def test_skip_leaves_out_one_step_and_no_more(poison, run):
    code, folder, records = run("trainer.on_nan=skip", bad={7}, poison=poison)
    (bad,) = (r for r in records if "bad" in r)
    assert code == 0 and bad["step"] == 7 and bad["action"] == "skip" and bad["position"]
    assert [r["step"] for r in records if "train/loss" in r] == [s for s in range(1, 21) if s != 7]
    assert all(x.isfinite().all() for x in weights(folder).values())
    assert all(torch.tensor(r["train/loss"]).isfinite() for r in records if "train/loss" in r)


def test_rewind_takes_the_weights_of_the_newest_checkpoint_and_goes_on_behind(run):
    """The steps since the checkpoint are undone: the rest equals, to the bit, a run that left them out. No state is carried here."""
    args = "layout=fixed", "checkpoint.every=5"
    code, folder, records = run(*args, "trainer.on_nan=rewind", bad={8}, poison=poison_gradient)
    (bad,) = (r for r in records if "bad" in r)
    assert code == 0 and (bad["step"], bad["to"]) == (8, "step-00000005")
    _, other, left_out = run(*args, "trainer.on_nan=skip", bad={6, 7, 8}, poison=poison_gradient, name="other")
    a, b = weights(folder), weights(other)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert [r.get("train/loss") for r in records[8:]] == [r.get("train/loss") for r in left_out[8:]]


def test_rewind_without_a_checkpoint_stops(run, capsys):
    code, folder, _ = run("trainer.on_nan=rewind", bad={3}, poison=poison_loss)
    assert code == 2 and "step 3" in (err := capsys.readouterr().err) and "there is no checkpoint" in err
    assert not store.points(folder / "checkpoints")


@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_ten_in_a_row_end_with_a_dump(action, run, capsys):
    code, folder, records = run(f"trainer.on_nan={action}", "checkpoint.every=2", bad=set(range(5, 40)), poison=poison_loss)
    dump = folder / "bad-step-00000014.json"
    err = capsys.readouterr().err
    assert code == 2 and "10 bad steps in a row" in err and str(dump) in err and "Traceback" not in err
    assert [r["step"] for r in records if "bad" in r] == list(range(5, 14))
    described = json.loads(dump.read_text())
    assert described["step"] == 14 and described["position"] and described["checkpoints"]
    assert all(x.isfinite().all() for x in weights(folder).values())


def test_nine_in_a_row_do_not(run):
    code, _, records = run("trainer.on_nan=skip", bad={*range(2, 11), *range(12, 20)}, poison=poison_loss)
    assert code == 0 and [r["step"] for r in records if "train/loss" in r] == [1, 11, 20]


def test_a_spike_is_skipped_and_does_not_raise_the_bound(run):
    code, _, records = run("trainer.on_nan=skip", "trainer.spike=20.0", "trainer.tokens=1920", bad={20, 21, 25}, poison=spike)
    assert code == 0 and [r["step"] for r in records if "bad" in r] == [20, 21, 25]
    assert "above" in next(r["bad"] for r in records if "bad" in r)


def test_a_run_without_bad_steps_is_the_same_to_the_bit(run):
    _, a, one = run()
    _, b, two = run("trainer.on_nan=skip", "trainer.max_bad=3", name="other")
    assert a.name == b.name and [r.get("train/loss") for r in one] == [r.get("train/loss") for r in two]
    assert all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def test_the_window_is_taken_up_again():
    trainer = load(["trainer.spike=3.0", "trainer.on_nan=skip"]).trainer
    guard = Guard(trainer)
    for i in range(LEAST - 1):
        assert guard.judge(1.0, 1.0 + i % 2, True) is None
        guard.accept(1.0 + i % 2)
    assert guard.judge(1.0, 100.0, True) is None  # too few yet
    guard.accept(1.0)
    assert guard.judge(1.0, 100.0, True) and not guard.refuse()
    again = Guard(trainer)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again.state_dict() == guard.state_dict() and again.row == 1 and again.judge(1.0, 100.0, True)
    for _ in range(2 * WINDOW):
        again.accept(1.0)
    assert len(again.norms) == WINDOW and again.row == 0


BAD = {4: "loss", 7: "gradient", 10: "state", 20: "spike"}
TOOK = {  # what a rank does with these steps, besides updates, checkpoints being made after every third
    "skip": ["drop 4", "drop 7", "drop 10", "drop 20"],
    "rewind": ["drop 4", "restore 4 step-00000003", "drop 7", "restore 7 step-00000006", "drop 10", "restore 10 step-00000009",
               "drop 20", "restore 20 step-00000018"],
    "stop": [],
}  # fmt: skip


def bad_steps(folder, strategy, policy):
    """What a run's ranks do, a line each, where the last rank has bad steps; the losses of the others; exit codes."""
    world = 1 if strategy == "auto" else 2
    args = "trainer.spike=50.0", "trainer.tokens=1344", "checkpoint.every=3", f"trainer.on_nan={policy}", f"strategy={strategy}", f"strategy.devices={world}"
    precision = "fp32" if strategy.startswith("ds") else "fp64"
    args = tiny("data=text", f"data.path={write_text(folder / 'text.txt')}", f"out={folder / 'out'}", f"precision={precision}", *args)
    codes = forked.codes(forked.ranks(world, bad_on_a_rank, args, BAD, world - 1, folder / "events", log=folder / "log"))
    run = the_run(folder / "out")
    for point in store.points(run / "checkpoints"):
        assert all(x.isfinite().all() for kind in ("model", "optimizer") for x in shards.Tensors(point, kind).values())
    return [(folder / f"events-{rank}").read_text().splitlines() for rank in range(world)], losses(run), codes


def one_rank_of_two_is_bad(folder, strategy, policy, alone):
    """All ranks do the same at the same step, leave out that step alone, and come to what one process comes to. `alone`: its losses."""
    did, found, codes = bad_steps(folder, strategy, policy)
    log = (folder / "log-0").read_text()
    assert codes == [2 if policy == "stop" else 0] * 2, log
    assert did[0] == did[1] and [x for x in did[0] if not x.startswith("step")] == TOOK[policy]
    applied = [int(x.split()[1]) for x in did[0] if x.startswith("step")]
    assert applied == [s for s in range(1, 4 if policy == "stop" else 22) if s not in BAD]
    assert [s for s, _ in found] == applied
    assert [x for _, x in found] == pytest.approx([x for _, x in alone[: len(found)]], rel=1e-4 if strategy.startswith("ds") else 1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """policy -> the losses of one process"""
    return {policy: bad_steps(tmp_path_factory.mktemp(policy), "auto", policy)[1] for policy in ("skip", "rewind")}


@pytest.mark.parametrize(("strategy", "policy"), [("ddp", "rewind"), ("fsdp", "skip"), ("ds2_offload", "skip"), ("ds3", "rewind"), ("ddp", "stop")])
def test_one_rank_of_two_is_bad(strategy, policy, tmp_path, alone):
    one_rank_of_two_is_bad(tmp_path, strategy, policy, alone.get(policy, alone["skip"]))
