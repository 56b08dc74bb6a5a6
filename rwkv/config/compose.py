"""argv -> composed YAML -> dataclasses, with errors that name the setting, its value, what is allowed and the nearest.

Hydra composes the groups of `conf/`; everything it would let through (unknown keys behind `+` or in an experiment
file, wrong types) is caught when the result is converted to `TrainConfig`.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from rwkv.config import schema
from rwkv.config.foreign import OF_OTHERS
from rwkv.config.launch import LAUNCHERS, SWEEPERS, Grid, Local, Optuna, Slurm
from rwkv.config.schema import TrainConfig, parse_count
from rwkv.errors import ConfigError

PRIMARY = "train"
T = TypeVar("T")


def conf_dir() -> Path:
    """The folder of the YAML: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{PRIMARY}.yaml").is_file():
            return folder
    raise ConfigError(f"conf/{PRIMARY}.yaml is missing beside {package}: the installation is incomplete")


@dataclass(frozen=True)
class Group:
    """A config group: its options, which of them is the default, and what it decides."""

    options: list[str]
    default: str | None
    about: str


def groups() -> dict[str, Group]:
    """Every config group, in the order of the defaults list of train.yaml, whose comments say what each decides."""
    text = (conf_dir() / f"{PRIMARY}.yaml").read_text()
    about = dict(re.findall(r"^  - (?:override )?([\w/]+):.*# (.*)$", text, re.MULTILINE))
    out = {}
    for entry in yaml.safe_load(text)["defaults"]:
        for key, default in entry.items() if isinstance(entry, dict) else ():
            name = key.removeprefix("override ")
            options = sorted((f.stem for f in (conf_dir() / name).glob("[!_]*.yaml")), key=_natural)
            out[name] = Group(options, default, about[name])
    return out


def _natural(option: str) -> tuple:
    """Sizes by number, names by alphabet."""
    digits = option.rstrip("bk")
    try:
        return 0, float(digits) * (1024 if option.endswith("k") else 1), option
    except ValueError:
        return 1, 0.0, option


def normalise(overrides: list[str]) -> list[str]:
    """Check each override's key or option, and turn `ctx_len=1000` (a number that is no option) into a value.

    Raises:
        ConfigError: an override that cannot be read, an unknown option or key.
    """
    known, out = groups(), []
    seen: dict[str, Override] = {}
    for text in overrides:
        override = parse(text)
        key = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"{text}: a setting cannot be deleted; set it to another value, as in {key}=...")
        if override.is_sweep_override():
            raise ConfigError(f"{text}: several values; add -m to train with each of them, or write one value that is a list as {key}=[a,b]")
        if key in seen:
            raise ConfigError(f"{key} is set twice: {seen[key].input_line} and {text}; keep one")
        seen[key] = override
        out.append(_check_option(text, override, known) if key in known else _check_key(text, override, known))
    for key, override in seen.items():
        below = next((seen[k] for k in seen if k.startswith(f"{key}.")), None)
        if below and key not in known and not isinstance(override.value(), dict):
            raise ConfigError(f"{override.input_line} and {below.input_line}: the one replaces the other; keep one, or name the first below {key} too")
    return out


def parse(text: str) -> Override:
    """One override in Hydra's grammar. Raises ConfigError if it is none."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        hint = " (a value with spaces or signs needs quotes: 'key=\"value\"')" if "=" in text else ": settings are written key=value"
        raise ConfigError(f"{text}: cannot be read{hint}") from error


def _check_option(text: str, override: Override, known: dict[str, Group]) -> str:
    group = override.key_or_group
    value = override.value()
    if isinstance(value, list):
        choices = [str(x) for x in value]
    else:
        choices = ["null" if value is None else str(value)]
    unknown = [c for c in choices if c not in known[group].options and not (group == "experiment" and c == "null")]
    if not unknown:
        # quoted, since Hydra takes a bare number for a number and not for an option's name
        return text if isinstance(value, list) else f"{group}='{choices[0]}'" if choices != ["null"] else text
    if group == "ctx_len" and len(choices) == 1 and isinstance(parse_count(value), int):
        return f"ctx_len.tokens={parse_count(value)}"
    options = known[group].options
    if meant := OF_OTHERS.get(group, {}).get(unknown[0]):
        raise ConfigError(f"{group}={unknown[0]}: {meant}")
    raise ConfigError(f"{group}={unknown[0]}: there is no such option{nearest(unknown[0], options)}; {group} has {', '.join(options) or 'none yet'}")


def _check_key(text: str, override: Override, known: dict[str, Group]) -> str:
    path = override.key_or_group.split(".")
    if path[0].split("/")[0] == "hydra":
        return _check_hydra_key(text, path)
    node: Any = TrainConfig
    for depth, part in enumerate(path):
        fields = _fields(node)
        if _named(node) is not None and depth:
            return f"++{text.lstrip('+')}"  # a name, new or not, and what it is made of: checked when they are composed
        if part not in fields:
            where = ".".join(path[:depth])
            names = list(fields) + (list(known) if depth == 0 else [])
            raise ConfigError(
                f"{text}: unknown setting {override.key_or_group}{nearest(part, names, where)}; "
                f"{where or 'the top level'} has {', '.join(fields) or 'no settings below it'}"
            )
        node = fields[part]
    return f"++{text.lstrip('+')}" if _named(node) is not None else text.lstrip("+")


def _fields(node: Any) -> dict[str, Any]:
    """Field name -> type, of a dataclass or of an optional one."""
    for candidate in (node, *getattr(node, "__args__", ())):
        if dataclasses.is_dataclass(candidate):
            return {f.name: f.type for f in dataclasses.fields(candidate)}
    return {}


def _named(node: Any) -> Any:
    """The type of the values of a mapping from names, or of a union with one; None of anything else."""
    if getattr(node, "__origin__", None) is dict:
        value = node.__args__[1]
        return getattr(schema, value) if isinstance(value, str) else value
    return next((found for x in getattr(node, "__args__", ()) if (found := _named(x)) is not None), None)


def nearest(word: str, names: Iterable[str], prefix: str = "") -> str:
    """ " (did you mean prefix.name?)", or nothing where no name is near."""
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean {prefix + '.' if prefix else ''}{found[0]}?)" if found else ""


def _check_hydra_key(text: str, path: list[str]) -> str:
    """Of Hydra's own settings, those of the launcher and the sweeper are ours."""
    kinds = {"launcher": LAUNCHERS, "sweeper": SWEEPERS}.get(path[1] if len(path) > 1 else "")
    if path[0] != "hydra" or kinds is None:
        raise ConfigError(f"{text}: of hydra, hydra/launcher= and hydra/sweeper= are chosen here, hydra.launcher.KEY= and hydra.sweeper.KEY= set")
    names = sorted({name for kind in kinds.values() for name in _fields(kind)} - {"kind"})
    if len(path) < 3 or path[2] not in names:
        where = f"hydra.{path[1]}"
        raise ConfigError(f"{text}: unknown setting{nearest(path[-1], names, where)}; {where} has {', '.join(names)}")
    return text


def load(overrides: list[str]) -> TrainConfig:
    """Compose, convert, check types and ranges.

    Raises:
        ConfigError: any of it fails; the message lists every problem found.
    """
    overrides = normalise(overrides)
    cfg = _composed(overrides)
    try:
        choices = dict(cfg.hydra.runtime.choices)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        tree["data"]["mix"] = expand_mix(tree["data"]["mix"])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(str(error).split("\nfull_key")[0]) from error
    if tree["name"] is None:
        origin = tree["model"]["path"]
        model = [Path(str(origin)).stem] if origin else [choices["arch"], choices["model"]]
        tree["name"] = "-".join([*model, choices["data"]])
    return convert(tree, overrides)


def load_launch(overrides: list[str]) -> tuple[Local | Slurm, Grid | Optuna]:
    """Where jobs run and what a sweep tries. Raises ConfigError as `load` does."""
    overrides = normalise(overrides)
    hydra = OmegaConf.to_container(_composed(overrides).hydra, resolve=False)
    nodes = [(f"hydra.{part}", kinds, hydra[part]) for part, kinds in (("launcher", LAUNCHERS), ("sweeper", SWEEPERS))]
    return tuple(convert(node, overrides, kinds[node["kind"]], root) for root, kinds, node in nodes)


def _composed(overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(PRIMARY, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        text = str(error).split("\nfull_key")[0]
        if found := re.search(r"Could not override '(hydra\.(launcher|sweeper)\.\w+)'", text):
            text = f"{found[1]}: not a setting of the {found[2]} chosen; choose another with hydra/{found[2]}="
        raise ConfigError(text) from error


def expand_mix(mix: Any) -> dict | None:
    """Sources as they are written, {name: {data: OPTION, weight: 2, epochs: 3, any key of data: value}}, each with every key.

    Raises:
        ConfigError: not of that form, or no such option.
    """
    if not mix:
        return None
    if not isinstance(mix, dict) or not all(isinstance(entry, dict) for entry in mix.values()):
        raise ConfigError(f"data.mix={mix}: wanted sources by name: data.mix='{{books: {{data: text, path: books/, weight: 2}}, chats: {{data: jsonl, ...}}}}'")
    options = [option for option in groups()["data"].options if option != "mix"]
    out = {}
    for name, entry in mix.items():
        keys = {"data": "files", "weight": 1.0, "epochs": None} | entry
        option = keys.pop("data")
        if option not in options:
            raise ConfigError(f"data.mix.{name}.data={option}: there is no such option{nearest(str(option), options)}; it can be {', '.join(options)}")
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            data = OmegaConf.to_container(compose(PRIMARY, overrides=[f"data='{option}'"])["data"])
        source = {"weight": _float(keys.pop("weight")), "epochs": _float(keys.pop("epochs"))}
        out[str(name)] = source | {"data": _merged(data, keys)}
    return out


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _merged(tree: dict, changes: dict) -> dict:
    return tree | {k: _merged(tree[k], v) if isinstance(v, dict) and isinstance(tree.get(k), dict) else v for k, v in changes.items()}


def convert(tree: dict, overrides: list[str] = (), kind: type[T] = TrainConfig, root: str = "") -> T:
    """A plain dict as the dataclass `kind`, whose place in the settings is `root`. Raises ConfigError that lists every problem found."""
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, overrides, kind, root) for problem in error.errors())) from error


def _explain(problem: dict, overrides: list[str], node: Any, root: str) -> str:
    path = [str(part) for part in problem["loc"]]
    fields: dict[str, Any] = {}
    key: list[str] = root.split(".") if root else []
    for part in path:
        fields = _fields(node)
        if (named := _named(node)) is not None:
            key.append(part)
            node = named
            continue
        if part not in fields and problem["type"] != "unexpected_keyword_argument":
            break  # pydantic's own steps into unions and lists
        key.append(part)
        node = fields.get(part)
    name = ".".join(key)
    where = _origin(key, overrides)
    if problem["type"] == "unexpected_keyword_argument":
        return f"{name}: unknown setting{nearest(key[-1], list(fields), '.'.join(key[:-1]))}{where}"
    if problem["type"] == "missing":
        return f"{name}: not set{where}"
    return f"{name}={problem['input']!r}: {problem['msg'][0].lower() + problem['msg'][1:]}{where}"


def _origin(key: list[str], overrides: list[str]) -> str:
    """Where a value came from: the command line, or the files of conf/ that set such a key."""
    name = ".".join(key)
    if any(o.lstrip("+").startswith(name + "=") for o in overrides):
        return ""
    chosen = [o.split("=", 1) for o in overrides if o.split("=", 1)[0] in (key[0], "experiment")]
    files = [conf_dir() / group / f"{option.strip(chr(39))}.yaml" for group, option in chosen]
    hits = [str(f.relative_to(conf_dir().parent)) for f in files if f.is_file() and _sets(f, key)]
    return f" (in {', '.join(hits)})" if hits else ""


def _sets(file: Path, key: list[str]) -> bool:
    return any(line.strip().startswith(f"{key[-1]}:") for line in file.read_text().splitlines())


def tree_of(cfg: TrainConfig) -> dict[str, Any]:
    """The settings as YAML has them: dicts, lists and plain values."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: plain(v) for k, v in node.items()}
        return [plain(v) for v in node] if isinstance(node, list | tuple) else node

    return plain(dataclasses.asdict(cfg))


def flatten(cfg: TrainConfig) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, f"{prefix}.{key}" if prefix else key)
        else:
            yield prefix, node

    yield from walk(dataclasses.asdict(cfg), "")
