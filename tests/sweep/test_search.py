"""A search: what it draws, whom it ends early, and that neither kills nor failures lose or repeat anything."""

import io
import json
import math
import re
import signal
import sys

import optuna
import pytest
from rich.console import Console

from rwkv.errors import ConfigError
from rwkv.sweep.command import values_of
from rwkv.sweep.expand import request
from rwkv.sweep.ledger import Sweep
from rwkv.sweep.pool import Pool
from rwkv.sweep.screen import Screen
from rwkv.sweep.search import JOURNAL, Search, corners, describe, space, typed
from rwkv.training.signals import Stop
from tests.conftest import command
from tests.sweep.test_local import held, ledger, settings, start, steps, text, wait_for  # noqa: F401

OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.startup=2"]


class Fake:
    """Jobs that write a validation at each look, and whose loss is the better the nearer the learning rate is to 0.01."""

    detaches = False

    def __init__(self, parallel=1, fails=(), diverges=(), dies_after=math.inf):
        self.parallel, self.fails, self.diverges, self.looks = parallel, fails, diverges, dies_after
        self.running, self.stopped = {}, set()

    def check(self, jobs): ...

    def room(self, job):
        return len(self.running) < self.parallel

    def start(self, job):
        job.folder.path.mkdir(parents=True, exist_ok=True)
        self.running[job.number] = job, 0

    def poll(self, jobs):
        self.looks -= 1
        if self.looks < 0:
            raise KeyboardInterrupt
        over = {}
        for number, (job, done) in list(self.running.items()):
            lr = float(job.values.get("optim.lr", 0.01))
            if number in self.diverges:
                (job.folder.path / "bad-step-00000002.json").write_text(json.dumps({"step": 2, "bad": "loss nan"}))
            if number in self.stopped or number in (*self.fails, *self.diverges) or done == 5:
                over[number] = 130 if number in self.stopped else 1 if number in (*self.fails, *self.diverges) else 0
                if done == 5:
                    job.folder.summary.write_text("{}")
                del self.running[number]
                continue
            with job.folder.metrics.open("a") as file:
                record = {"step": done + 1, "tokens": job.budget * (done + 1) // 5, "val/loss": 1 + abs(math.log10(lr) + 2) + 1 / (done + 1)}
                file.write(json.dumps(record) + "\n")
            self.running[number] = job, done + 1
        return over

    def stop(self, job):
        self.stopped.add(job.number)

    def kill(self, job): ...


def run(tmp_path, monkeypatch, backend, *overrides):
    """A search from the command's overrides to its end; returns the sweep, the study, and what was said."""
    monkeypatch.setattr(Pool, "NAP", 0.0)
    asked = request([*OPTUNA, f"out={tmp_path / 'outputs'}", *overrides])
    sweep, said = Sweep.of(asked), io.StringIO()
    sweep.open()
    try:
        corners(asked)
        screen = Screen(sweep, 30.0, Console(file=said, width=200, soft_wrap=True))
        source = Search(asked, sweep, backend, lambda point: values_of(asked, point), screen.say)
        with Stop(told="") as stop:
            Pool(sweep, source, backend, screen, stop).run(lambda: sweep.jobs)
    finally:
        sweep.close()
    return sweep, source.study, said.getvalue()


def states(study):
    return [t.state.name for t in study.trials]


def test_it_learns_what_is_good_and_ends_what_is_hopeless(tmp_path, monkeypatch):
    sweep, study, said = run(tmp_path, monkeypatch, Fake(), "hydra.sweeper.trials=10", "optim.lr=tag(log,interval(1e-5,1e-1))")
    assert len(study.trials) == len(sweep.jobs) == 10 and set(states(study)) == {"COMPLETE", "PRUNED"}
    assert "PRUNED" not in states(study)[:2], "the first ones are there to compare with"
    for trial, job in zip(study.trials, sweep.jobs, strict=True):
        assert float(job.values["optim.lr"]) == pytest.approx(trial.params["optim.lr"], rel=1e-3)
        assert (job.state == "pruned") == (trial.state.name == "PRUNED") == job.folder.pruned.is_file()
    worst_done = max(t.value for t in study.trials if t.state.name == "COMPLETE")
    pruned = [j for j in sweep.jobs if j.state == "pruned"]
    assert all(len(j.folder.metrics.read_text().splitlines()) < 5 for j in pruned)
    assert study.best_value < 1.5 < worst_done
    assert re.search(r"pruned at step \d: validation loss \d\.\d+ at \d+ % of the budget, worse than the median of the trials before", said)


def test_more_trials_of_the_same_search_go_on_with_it(tmp_path, monkeypatch):
    space = ["optim.lr=interval(1e-3,1e-1)", "hydra.sweeper.sampler=random"]
    _, first, _ = run(tmp_path, monkeypatch, Fake(), *space, "hydra.sweeper.trials=3")
    before = [t.params for t in first.trials]
    sweep, study, _ = run(tmp_path, monkeypatch, Fake(), *space, "hydra.sweeper.trials=5")
    assert len(study.trials) == 5 and [t.params for t in study.trials[:3]] == before
    assert len({t.params["optim.lr"] for t in study.trials}) == 5, "a search that goes on does not draw the same again"
    assert all(j.attempts == 1 for j in sweep.jobs)


def test_a_kill_loses_nothing_and_repeats_nothing(tmp_path, monkeypatch):
    args = ["hydra.sweeper.trials=4", "optim.lr=interval(1e-3,1e-1)"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, Fake(parallel=2, dies_after=8), *args)
    (journal,) = tmp_path.glob(f"outputs/sweeps/*/{JOURNAL}")
    with journal.open("a") as file:
        file.write('{"op_code":5,"wor')
    (journal.parent / f"{JOURNAL}.lock").symlink_to(journal)
    sweep, study, _ = run(tmp_path, monkeypatch, Fake(parallel=2), *args)
    assert len(study.trials) == len(sweep.jobs) == 4 and "RUNNING" not in states(study)
    assert [j.attempts for j in sweep.jobs] == [1, 1, 2, 2], "those that were under way are gone on with"


def test_a_failed_trial_is_tried_again_and_one_that_diverged_is_not(tmp_path, monkeypatch):
    args = ["hydra.sweeper.trials=4", "optim.lr=interval(1e-3,1e-1)", "hydra.sweeper.prune=none"]
    sweep, study, said = run(tmp_path, monkeypatch, Fake(fails=(2,), diverges=(3,)), *args)
    assert [j.state for j in sweep.jobs] == ["done", "failed", "pruned", "done"] and "diverged: step 2: loss nan" in said
    assert states(study) == ["COMPLETE", "RUNNING", "PRUNED", "COMPLETE"]
    sweep, study, _ = run(tmp_path, monkeypatch, Fake(), *args)
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"] and [j.attempts for j in sweep.jobs] == [1, 2, 1, 1]


def test_the_same_values_drawn_again_are_one_run(tmp_path, monkeypatch):
    sweep, study, _ = run(tmp_path, monkeypatch, Fake(parallel=2), "hydra.sweeper.trials=7", "optim.lr=1e-2,2e-2", "hydra.sweeper.sampler=random")
    assert len(sweep.jobs) == 2 and len(study.trials) == 7 and "RUNNING" not in states(study) and {j.attempts for j in sweep.jobs} == {1}
    values = {(t.params["optim.lr"], t.value) for t in study.trials if t.state.name == "COMPLETE"}
    assert len(values) <= 2


def test_settings_that_cannot_go_together_are_left_out(tmp_path, monkeypatch):
    args = ["hydra.sweeper.trials=8", "bptt=exact,off", "layout.chunks=4,1", "hydra.sweeper.sampler=random"]
    sweep, study, said = run(tmp_path, monkeypatch, Fake(), *args)
    assert "left out, for these settings cannot go together: bptt=off learns from one chunk" in said and "FAIL" in states(study)
    assert {(j.values["bptt"], j.values["layout.chunks"]) for j in sweep.jobs} <= {("exact", "4"), ("exact", "1"), ("off", "1")}


def test_successive_halving(tmp_path, monkeypatch):
    args = ["hydra.sweeper.trials=9", "optim.lr=tag(log,interval(1e-5,1e-1))", "hydra.sweeper.prune=asha", "hydra.sweeper.sampler=random"]
    sweep, study, _ = run(tmp_path, monkeypatch, Fake(), *args)
    assert states(study).count("PRUNED") >= 3
    done = [j for j in sweep.jobs if j.state == "done"]
    assert min(study.trials, key=lambda t: abs(math.log10(t.params["optim.lr"]) + 2)).state.name == "COMPLETE" and done


@pytest.mark.parametrize(
    ("override", "told", "values"),
    [
        ("optim.lr=interval(1e-4,1e-2)", "0.0001 to 0.01", (1.23456e-3, "0.001235")),
        ("optim.lr=tag(log,interval(1e-4,1e-2))", "0.0001 to 0.01, by magnitude", (9.99999e-3, "0.01")),
        ("optim.lr=interval(0.00123444,1)", "0.00123444 to 1", (0.001234441, "0.001234441")),
        ("seed=int(interval(1,9))", "1 to 9", (3, "3")),
        ("schedule.warmup_steps=range(0,40,10)", "0 to 30 in steps of 10", (20, "20")),
        ("optim.clip=range(0,1,0.25)", "0 to 0.75 in steps of 0.25", (0.25, "0.25")),
        ("model=tiny,0.1b", "tiny, 0.1b", ("0.1b", "0.1b")),
    ],
)
def test_spaces(override, told, values):
    asked = request([*OPTUNA, override])
    assert describe(asked) == f"{override.split('=')[0]}: {told}"
    (distribution,) = space(asked).values()
    assert typed(values[0], distribution) == values[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=interval(-1,1)"], r"optim\.lr=-1\.0: input should be greater than 0"),
        (["optim.lr=interval(2,1)"], r"optim\.lr=interval\(2,1\): .*low"),
        (["optim.lr=tag(log,interval(0,1))"], r"optim\.lr=tag\(log,interval\(0,1\)\): .*low"),
        (["seed=interval(1,9)"], r"seed=1\.0: input should be a valid integer|seed=.*integer"),
        (["model=tiny,7bb"], r"did you mean 7b\?"),
        (["seed=1,2", "trainer.val_every=0"], r"prune=median goes by validation losses on the way: set trainer\.val_every"),
        (["seed=1,2", "data.val_share=0.0"], r"goes by the validation loss, and nothing is held out"),
        (["seed=1,2", "hydra.sweeper.sampler=tpee"], r"hydra\.sweeper\.sampler='tpee'"),
    ],
)
def test_refused_before_the_first_trial(overrides, message):
    with pytest.raises(ConfigError, match=message):
        corners(request([*OPTUNA, *overrides]))


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    asked = request([*OPTUNA, "seed=1,2", "hydra.sweeper.sampler=cmaes"])
    monkeypatch.setitem(sys.modules, "cmaes", None)
    sweep = Sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.sampler=cmaes: .*pip install cmaes"):
        Search(asked, sweep, Fake(), dict, print)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"hydra/sweeper=optuna: the package is not installed; pip install"):
        corners(asked)


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "qmc"])
def test_every_sampler_draws(sampler, tmp_path, monkeypatch):
    args = [f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.trials=3", "optim.lr=interval(1e-3,1e-1)", "optim.clip=interval(0.1,1)"]
    _, study, _ = run(tmp_path, monkeypatch, Fake(), *args)
    assert len(study.trials) == 3 and len({t.params["optim.lr"] for t in study.trials}) == 3


@pytest.mark.slow
def test_a_real_search_is_killed_and_gone_on_with(text, tmp_path):  # noqa: F811
    """What learns nothing is ended; the parent is killed in the midst of a trial; the same command comes to the end of all."""
    sweeper = {"trials": 4, "startup": 1, "sampler": "random", "seed": 2}
    args = [*settings(text, "trainer.val_every=4", "trainer.tokens=5k"), "hydra/sweeper=optuna", *(f"hydra.sweeper.{k}={v}" for k, v in sweeper.items())]
    args += ["optim.lr=3e-2,1e-7", "seed=int(interval(1,999))", "hydra.launcher.jobs=1"]
    parent = start(args, tmp_path, tmp_path / "log")
    wait_for(lambda: len(steps(tmp_path)) == 3 and min(steps(tmp_path)) > 1)
    parent.send_signal(signal.SIGKILL)
    parent.wait(60)
    wait_for(lambda: held(tmp_path) == [None] * 3, 10)
    done = command("train", "-m", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    jobs = ledger(tmp_path)
    assert len(jobs) == 4 and {j["state"] for j in jobs} == {"done", "pruned"}
    assert {j["values"]["optim.lr"] for j in jobs if j["state"] == "pruned"} == {"1e-07"}, jobs
    assert all(re.search("best of . run", done.stdout) and (tmp_path / j["run"]).is_dir() for j in jobs)
    (journal,) = tmp_path.glob(f"outputs/sweeps/*/{JOURNAL}")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    assert "RUNNING" not in states(optuna.load_study(study_name=None, storage=storage))
