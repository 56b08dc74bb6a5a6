"""hydra/sweeper=optuna: trials whose settings are chosen by what earlier ones have reached, and ended early where there is no hope.

Optuna chooses and judges (`ask`, `report`, `tell`); jobs run as those of a grid do. Its study is a journal in the sweep's folder. A trial
stays open there until its run has finished or was pruned: one that was killed, stopped or failed is gone on with by the same command.
"""

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from rwkv.config.launch import Optuna
from rwkv.errors import ConfigError
from rwkv.sweep.expand import Point, Request, choices
from rwkv.sweep.ledger import Job, Sweep
from rwkv.sweep.pool import Backend, Source
from rwkv.sweep.progress import Progress

JOURNAL, STUDY = "study.journal", "search"
NEEDS = {"cmaes": ("cmaes",), "gp": ("scipy",), "qmc": ("scipy",)}  # packages of samplers


def library():
    """Optuna, quiet. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("hydra/sweeper=optuna: the package is not installed; pip install 'optuna>=5,<6'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def space(asked: Request) -> dict[str, Any]:
    """Setting -> Optuna's distribution of it: an interval, a range, or the values listed. Raises ConfigError for one that is empty."""
    return {override.key_or_group: _distribution(override) for override in asked.swept}


def _distribution(override: Override):
    of = library().distributions
    value = override.value()
    if isinstance(value, RangeSweep) and value.step > 0 and not value.shuffle:
        last = choices(override)[-1]
        whole = isinstance(value.start, int) and isinstance(value.step, int)
        return of.IntDistribution(value.start, int(last), step=value.step) if whole else of.FloatDistribution(value.start, float(last), step=value.step)
    if not isinstance(value, IntervalSweep):
        return of.CategoricalDistribution(choices(override))
    kind, log = of.IntDistribution if isinstance(value.start, int) else of.FloatDistribution, "log" in value.tags
    try:
        return kind(value.start, value.end, log=log)
    except ValueError as error:
        raise ConfigError(f"{override.input_line}: {str(error)[0].lower()}{str(error)[1:]}") from error


def typed(value: Any, distribution: Any) -> str:
    """A value as an override takes it: numbers without end to four digits."""
    if isinstance(value, float) and distribution.step is None:
        near = float(f"{value:.4g}")
        return repr(near if distribution.low <= near <= distribution.high else value)
    return str(value)


def suggest(trial, key: str, d: Any) -> Any:
    """A trial's value of a setting: drawn now, or as it was."""
    if hasattr(d, "choices"):
        return trial.suggest_categorical(key, d.choices)
    return (trial.suggest_int if isinstance(d.low, int) else trial.suggest_float)(key, d.low, d.high, step=d.step, log=d.log)


def corners(asked: Request) -> list[Point]:
    """Points that together have the ends of every interval and every value listed, composed and checked before the first trial starts.

    Raises:
        ConfigError: one of them is wrong, or a search by validation loss is none with these settings.
    """
    ends = {k: list(d.choices) if hasattr(d, "choices") else [typed(v, d) for v in (d.low, d.high)] for k, d in space(asked).items()}
    points = [asked.point(tuple(values[i % len(values)] for values in ends.values())) for i in range(max(map(len, ends.values())))]
    for point in points:
        data, options = point.cfg.data, asked.sweeper
        if data.kind != "mix" and not (data.val_share or data.val_split or data.val_path):
            raise ConfigError("hydra/sweeper=optuna goes by the validation loss, and nothing is held out: set data.val_share, or data.val_path")
        if options.prune != "none" and not point.cfg.trainer.val_every:
            raise ConfigError(f"hydra.sweeper.prune={options.prune} goes by validation losses on the way: set trainer.val_every, or hydra.sweeper.prune=none")
    return points


def describe(asked: Request) -> str:
    """The space in words, a line a setting."""
    lines = []
    for key, d in space(asked).items():
        if hasattr(d, "choices"):
            told = ", ".join(map(str, d.choices))
        else:
            told = f"{d.low:g} to {d.high:g}" + (", by magnitude" if d.log else f" in steps of {d.step:g}" if d.step not in (None, 1) else "")
        lines.append(f"{key}: {told}")
    return "\n".join(lines)


def sampler(options: Optuna, drawn: int, parallel: int):
    """Optuna's sampler of that name. drawn: trials so far; a search that goes on does not draw the same numbers again."""
    of = library().samplers
    for package in NEEDS.get(options.sampler, ()):
        try:
            __import__(package)
        except ImportError as error:
            raise ConfigError(f"hydra.sweeper.sampler={options.sampler}: needs a package that is not installed; pip install {package}") from error
    seed, startup = options.seed + drawn, options.startup
    made: dict[str, Callable] = {
        "tpe": lambda: of.TPESampler(n_startup_trials=startup, constant_liar=parallel > 1, seed=seed),
        "random": lambda: of.RandomSampler(seed=seed),
        "cmaes": lambda: of.CmaEsSampler(n_startup_trials=max(startup, 1), seed=seed),
        "gp": lambda: of.GPSampler(n_startup_trials=startup, seed=seed),
        "qmc": lambda: of.QMCSampler(seed=options.seed, scramble=True),  # its place in the sequence is in the study
    }
    return made[options.sampler]()


def pruner(options: Optuna):
    """Optuna's pruner of that name. Its steps are percents of a run's budget."""
    of, after = library().pruners, round(100 * options.prune_after)
    if options.prune == "median":
        return of.MedianPruner(n_startup_trials=options.startup, n_warmup_steps=after)
    return of.SuccessiveHalvingPruner(min_resource=max(after, 1), reduction_factor=3) if options.prune == "asha" else of.NopPruner()


def open_study(folder: Path, options: Optuna, parallel: int):
    """The study in a sweep's folder, whose lock this process has; a line that a kill has torn is left out."""
    optuna, path = library(), folder / JOURNAL
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.is_file():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(os.fspath(path)))
    study = optuna.create_study(study_name=STUDY, storage=storage, load_if_exists=True, direction="minimize", pruner=pruner(options))
    study.sampler = sampler(options, len(study.trials), parallel)
    return study


class Search(Source):
    """Jobs of trials, each asked for when there is room for it."""

    def __init__(self, asked: Request, sweep: Sweep, backend: Backend, values_of: Callable[[Point], dict[str, Any]], say: Callable[[str], None]):
        """say: told what becomes of a trial that has no run."""
        super().__init__([])
        self.asked, self.sweep, self.backend, self.values_of, self.say = asked, sweep, backend, values_of, say
        self.options, self.space = asked.sweeper, space(asked)
        self.study = open_study(sweep.path, self.options, backend.parallel)
        self.open: dict[int, list] = {}  # job number -> its trials that are not decided; more than one where the same was drawn again
        self.seen: dict[int, tuple[int, float | None]] = {}  # job number -> percent of the budget, and validation loss, last reported
        self.optuna = library()
        for trial in self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)):
            self._place(self.optuna.trial.Trial(self.study, trial._trial_id), trial.intermediate_values)

    @property
    def drawn(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def next(self, running: int) -> Job | None:
        """As of a `Source`; a trial is drawn when it can start, so that it knows all that has ended by then."""
        while not self.queue and running < self.backend.parallel and self.drawn < self.options.trials:
            self._place(self.study.ask(), {})
        return self.queue[0] if self.queue else None

    def _place(self, trial, reported: dict[int, float]) -> None:
        """Find or make the job of a trial. One whose run has ended is told at once, one whose run is under way waits for it."""
        values = tuple(typed(suggest(trial, key, d), d) for key, d in self.space.items())
        try:
            point = self.asked.point(values)
        except ConfigError as error:
            self.say(f"left out, for these settings cannot go together: {error}")
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            return
        job = self.sweep.add(point, self.values_of(point))
        self.backend.check([job])
        known = job.number in self.open
        self.open.setdefault(job.number, []).append(trial)
        if job.state in ("done", "pruned"):
            self.ended(job, Progress.of(job.folder.metrics))
        elif not known:
            last = max(reported, default=0)
            self.seen[job.number] = (last, reported.get(last))
            self.queue.append(job)

    def hopeless(self, job: Job, progress: Progress) -> str | None:
        """Report what is new, each percent of the budget with the loss known then, so that trials of other validations compare."""
        trials = self.open.get(job.number, ())
        last, before = self.seen.get(job.number, (0, None))
        for tokens, loss in progress.validations:
            percent = min(100, 100 * tokens // job.budget)
            if percent <= last or not math.isfinite(loss):
                continue
            for trial in trials:
                for between in range(last + 1, percent) if before is not None else ():
                    trial.report(before, between)
                trial.report(loss, percent)
            last, before = percent, loss
            self.seen[job.number] = last, before
            if trials and percent < 100 and trials[0].should_prune():
                than = "the median of the trials before" if self.options.prune == "median" else "the best third of the trials before"
                return f"validation loss {loss:.3f} at {percent} % of the budget, worse than {than}"
        return None

    def lost(self, job: Job) -> str | None:
        dumps = sorted(job.folder.path.glob("bad-step-*.json"))
        if not dumps:
            return None
        bad = json.loads(dumps[-1].read_text())
        return f"diverged: step {bad['step']}: {bad['bad']}"

    def ended(self, job: Job, progress: Progress) -> None:
        """Tell what is final: the lowest validation loss, or that there was no hope. Raises ConfigError for a run without validation."""
        if job.state not in ("done", "pruned"):
            return
        losses = [loss for _, loss in progress.validations if math.isfinite(loss)]
        if job.state == "done" and not losses:
            raise ConfigError(f"{job.run}: has no validation loss, by which the search goes: set data.val_share, or data.val_path")
        for trial in self.open.pop(job.number, ()):
            if job.state == "done":
                self.study.tell(trial, min(losses))
            else:
                self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
