"""The types of `conf/hydra/`: where jobs run, and which settings a sweep tries. None of it changes what a run learns."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rwkv.config.schema import _STRICT, Bool, Count, Count0, Fraction, Positive, Text

Params = dict[Text, str | int | float | bool | list | None]


@dataclass(config=_STRICT, frozen=True)
class Local:
    """Processes of this machine, each device (GPU) used by one job."""

    kind: Literal["local"]
    jobs: Count | None  # at most so many at once; null: as many as there are devices, on a CPU one
    every: Positive  # seconds between lines about what runs, where there is no terminal


@dataclass(config=_STRICT, frozen=True)
class Slurm:
    """Jobs of a Slurm cluster: strategy.nodes nodes with strategy.devices tasks each, one task a GPU."""

    kind: Literal["slurm"]
    partition: Text | None  # null, here and below: the cluster's default
    account: Text | None
    qos: Text | None
    constraint: Text | None  # features of nodes, as "h100|h200"
    minutes: Count  # time limit of a job; a longer run is requeued and goes on
    memory_gb: Positive | None  # of a node
    cpus_per_task: Count | None
    gpus_per_node: Count0 | None  # null: one a task; none where strategy.accelerator=cpu
    exclusive: Bool  # whole nodes
    at_once: Count  # jobs of a sweep at most at the same time
    warning_seconds: Count  # before the time limit, for the last checkpoint
    restarts: Count0  # at most so many, after a time limit, preemption, a lost rank or the failure of a node
    mail_user: Text | None
    mail_type: Text | None  # of sbatch: END, FAIL, ALL, ...
    sbatch: dict[Text, str | int | float | bool] | None  # further options of sbatch: {reservation: mine}
    setup: Annotated[tuple[Text, ...], Field()]  # shell commands on the first node before training: module load ...
    poll: Positive  # seconds between questions to Slurm with --wait


@dataclass(config=_STRICT, frozen=True)
class Grid:
    """Every combination of the values given."""

    kind: Literal["grid"]
    params: Params | None  # of an experiment: setting -> its values as on the command line, "1e-3,3e-3"


@dataclass(config=_STRICT, frozen=True)
class Optuna:
    """Values chosen by what earlier trials have reached: the lowest validation loss is looked for."""

    kind: Literal["optuna"]
    params: Params | None  # as in a grid, and "interval(1e-4,1e-2)", "tag(log,interval(1e-4,1e-2))"
    trials: Count  # in all, over all calls of the same command
    sampler: Literal["tpe", "random", "cmaes", "gp", "qmc"]
    startup: Count0  # trials drawn at random before a sampler, or pruning, goes by those before
    prune: Literal["none", "median", "asha"]  # hopeless trials are ended early, by their validation loss
    prune_after: Fraction  # of the budget, before which no trial is ended
    seed: Count0


LAUNCHERS = {"local": Local, "slurm": Slurm}
SWEEPERS = {"grid": Grid, "optuna": Optuna}
