"""From a command line with several values to points: the settings of each run, in Hydra's own grammar of overrides."""

from collections import Counter
from dataclasses import dataclass
from itertools import product

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from rwkv.checkpoint.run import RunFolder
from rwkv.config.check import check
from rwkv.config.compose import groups, load, load_launch, parse
from rwkv.config.launch import Grid, Local, Optuna, Slurm
from rwkv.config.schema import TrainConfig
from rwkv.errors import ConfigError

MOST = 10_000  # points of a grid


@dataclass(frozen=True)
class Point:
    """overrides: what python -m rwkv.train takes for it. label: what tells it from the others, short."""

    overrides: tuple[str, ...]
    label: str
    cfg: TrainConfig

    @property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.cfg)


@dataclass(frozen=True)
class Request:
    """What a command asks for: `fixed` overrides of every run, `swept` ones, where the jobs run and how values are chosen."""

    fixed: tuple[str, ...]
    swept: tuple[Override, ...]
    launcher: Local | Slurm
    sweeper: Grid | Optuna

    @property
    def keys(self) -> list[str]:
        return [override.key_or_group for override in self.swept]

    def point(self, values: tuple[str, ...]) -> Point:
        """The run with these values of the swept settings, composed and checked. Raises ConfigError."""
        chosen = [f"{o.get_key_element()}={value}" for o, value in zip(self.swept, values, strict=True)]
        overrides = tuple([*self.fixed, *chosen])
        cfg = load(list(overrides))
        check(cfg)
        return Point(overrides, " ".join(f"{short(key, self.keys)}={v}" for key, v in zip(self.keys, values, strict=True)) or "the run", cfg)


def request(overrides: list[str]) -> Request:
    """Tell fixed overrides from swept ones; those of an experiment (`hydra.sweeper.params`) count where the command line has none.

    Raises:
        ConfigError: an override that cannot be read, a launcher or sweeper that is none.
    """
    parsed = [parse(text) for text in overrides]
    ours = [text for text, o in zip(overrides, parsed, strict=True) if o.is_hydra_override()]
    fixed = [text for text, o in zip(overrides, parsed, strict=True) if not (o.is_sweep_override() or o.is_hydra_override())]
    launcher, sweeper = load_launch([*fixed, *ours])
    typed = {o.key_or_group for o in parsed}
    given = [parse(f"{key}={_grammar(value)}") for key, value in (sweeper.params or {}).items() if key not in typed]
    fixed += [o.input_line for o in given if not o.is_sweep_override()]
    swept = [o for o in (*parsed, *given) if o.is_sweep_override()]
    if bad := [o.input_line for o in swept if o.is_hydra_override()]:
        raise ConfigError(f"{bad[0]}: a sweep has one launcher and one sweeper")
    if twice := [key for key, n in Counter(o.key_or_group for o in swept).items() if n > 1 or key in {parse(t).key_or_group for t in fixed}]:
        raise ConfigError(f"{twice[0]} is set twice: keep one")
    return Request(tuple(fixed), tuple(swept), launcher, sweeper)


def _grammar(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def grid(asked: Request) -> list[Point]:
    """Every combination, composed and checked, in the order of the values as typed, the last setting fastest.

    Raises:
        ConfigError: combinations that are wrong, each error once; or too many; or two that would be one run.
    """
    values = [choices(o) for o in asked.swept]
    total = 1
    for v in values:
        total *= len(v)
    if total > MOST:
        raise ConfigError(f"{total:,} combinations; at most {MOST:,} are run as one sweep")
    points, wrong = [], {}
    for number, combination in enumerate(product(*values), 1):
        try:
            points.append(asked.point(combination))
        except ConfigError as error:
            if total == 1:
                raise
            label = " ".join(f"{k}={v}" for k, v in zip(asked.keys, combination, strict=True))
            wrong.setdefault(str(error), []).append(f"combination {number} of {total} ({label})")
    if wrong:
        raise ConfigError("\n".join(f"{places[0]}{f' and {len(places) - 1} more' if places[1:] else ''}: {text}" for text, places in wrong.items()))
    return distinct(points)


def distinct(points: list[Point]) -> list[Point]:
    """The same without repetitions. Raises ConfigError for two whose folder would be the same though they differ."""
    found: dict[str, Point] = {}
    for point in points:
        other = found.setdefault(str(point.folder.path), point)
        if other.cfg != point.cfg:
            raise ConfigError(
                f"{other.label} and {point.label} learn the same, and would be one run, {point.folder.path}: these settings change only how it is "
                "computed or shown. To have both, give each a folder of its own, as in out='outputs/threads-${threads}'"
            )
    return list(found.values())


def choices(override: Override) -> list[str]:
    """The values of a swept setting, as overrides take them. Raises ConfigError for an interval, which has no end of them."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{override.input_line}: an interval has no list of values; give some (a,b,c or range(1,4)), or search it: hydra/sweeper=optuna")
    if isinstance(value, Glob):
        known = groups()
        if override.key_or_group not in known:
            raise ConfigError(f"{override.input_line}: glob() chooses among the options of a group, and {override.key_or_group} is none")
        found = value.filter(known[override.key_or_group].options)
    else:
        try:
            found = list(override.sweep_string_iterator())
        except HydraException as error:
            raise ConfigError(f"{override.input_line}: {error}") from error
    if not found:
        raise ConfigError(f"{override.input_line}: no value")
    return found


def short(key: str, keys: list[str]) -> str:
    """The last part of a key, if no other key ends so."""
    last = key.rpartition(".")[2]
    return last if sum(k.rpartition(".")[2] == last for k in keys) == 1 else key
