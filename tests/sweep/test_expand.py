"""From several values to runs, and what is refused before the first of them starts."""

import pytest

from rwkv.config.compose import conf_dir
from rwkv.config.launch import Optuna
from rwkv.errors import ConfigError
from rwkv.sweep.expand import grid, request


def labels(*overrides):
    return [p.label for p in grid(request(list(overrides)))]


def test_every_combination_the_last_setting_fastest():
    points = grid(request(["model=tiny,0.1b", "seed=7", "optim.lr=3e-4,6e-4"]))
    assert [p.label for p in points] == ["model=tiny lr=0.0003", "model=tiny lr=0.0006", "model=0.1b lr=0.0003", "model=0.1b lr=0.0006"]
    assert [(p.cfg.model.n_layer, p.cfg.optim.lr, p.cfg.seed) for p in points] == [(n, lr, 7) for n in (4, 12) for lr in (3e-4, 6e-4)]
    assert len({p.folder.path for p in points}) == 4


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("optim.lr=choice(1e-3,2e-3)", ["0.001", "0.002"]),
        ("ctx_len=128,1000", ["128", "1000"]),
        ("trainer.tokens=4k,8k", ["4k", "8k"]),
        ("model=glob(*b,exclude=1*)", ["0.1b", "0.4b", "3b", "7b"]),
        ("seed=sort(3,1,2)", ["1", "2", "3"]),
    ],
)
def test_hydras_grammar(typed, values):
    key = typed.split("=")[0].rpartition(".")[2]
    assert labels(typed) == [f"{key}={v}" for v in values]


def test_the_same_value_twice_is_one_run():
    assert labels("optim.lr=1e-3,0.001") == ["lr=0.001"]


def test_an_experiment_may_sweep_and_the_command_line_wins():
    file = conf_dir() / "experiment" / "zz_sweep.yaml"
    file.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      optim.lr: 1e-3,2e-3\n      seed: [1, 2]\n")
    try:
        assert labels("experiment=zz_sweep") == ["lr=0.001 seed=1", "lr=0.001 seed=2", "lr=0.002 seed=1", "lr=0.002 seed=2"]
        assert labels("experiment=zz_sweep", "seed=5") == ["lr=0.001", "lr=0.002"]
        assert labels("experiment=zz_sweep", "seed=5,6", "optim.lr=3") == ["seed=5", "seed=6"]
    finally:
        file.unlink()


def test_launchers_and_sweepers_are_typed():
    asked = request(["hydra/launcher=slurm", "hydra.launcher.minutes=90", "hydra.launcher.sbatch={reservation: mine}", "hydra/sweeper=optuna", "seed=1,2"])
    assert (asked.launcher.minutes, asked.launcher.sbatch) == (90, {"reservation": "mine"})
    assert isinstance(asked.sweeper, Optuna) and asked.fixed == () and asked.keys == ["seed"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=1e-3,-1", "model=tiny,0.1b"], r"combination 3 of 4 \(optim\.lr=-1 model=tiny\) and 1 more: optim\.lr=-1: input should be greater than 0"),
        (["model=tiny,7bb"], r"combination 2 of 2 \(model=7bb\): model=7bb: there is no such option \(did you mean 7b\?\)"),
        (["bptt=exact,off", "layout.chunks=4"], r"combination 2 of 2 \(bptt=off\): bptt=off learns from one chunk"),
        (["threads=1,2"], r"threads=1 and threads=2 learn the same, and would be one run, outputs/.* out='outputs/threads-\$\{threads\}'"),
        (["optim.lr=interval(1e-4,1e-2)"], r"an interval has no list of values.*hydra/sweeper=optuna"),
        (["optim.lr=glob(*)"], r"glob\(\) chooses among the options of a group"),
        (["model=glob(x*)"], r"no value"),
        (["seed=1,2", "seed=3"], r"seed is set twice"),
        (["seed=range(0,20000)"], r"20,000 combinations; at most 10,000"),
        (["seed=1,2", "hydra/launcher=slrm"], r"did you mean slurm"),
        (["seed=1,2", "hydra.launcher.partition=gpu"], r"hydra\.launcher\.partition: not a setting of the launcher chosen"),
        (["seed=1,2", "hydra.launcher.partitoin=gpu"], r"did you mean hydra\.launcher\.partition"),
        (["seed=1,2", "hydra.launcher.jobs=0"], r"hydra\.launcher\.jobs=0: input should be greater than or equal to 1"),
        (["seed=1,2", "hydra.run.dir=x"], r"of hydra, hydra/launcher= and hydra/sweeper= are chosen here"),
        (["seed=1,2", "hydra/launcher=local,slurm"], r"several values|one launcher"),
    ],
)
def test_refused_before_anything_starts(overrides, message):
    with pytest.raises(ConfigError, match=message):
        grid(request(overrides))


def test_out_may_tell_runs_apart_that_learn_the_same():
    assert len(labels("threads=1,2", "out='o/${threads}'")) == 2
