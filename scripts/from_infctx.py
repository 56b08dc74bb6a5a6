"""Turns an infctx trainer's configuration into an experiment file, and names every key that it leaves out, and why.

python scripts/from_infctx.py CONFIG.yaml                    the experiment on stdout, what is left out on stderr
python scripts/from_infctx.py CONFIG.yaml --write conf/experiment/NAME.yaml    then: python -m rwkv.train experiment=NAME
python scripts/from_infctx.py --table                        every key of the infctx trainer, and ours: scripts/from_infctx.md

CONFIG.yaml is a trainer's (trainer, model, data), a datapack (datapack, default, dataset), or a trainer's that names a datapack.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from infctx.conversion import Conversion, Row
from infctx.data import DATA, DATAPACK
from infctx.trainer import ENVIRONMENT, MODEL, TRAINER

SECTIONS = {"Environment": ENVIRONMENT, "Top level and trainer": TRAINER, "model": MODEL, "data": DATA, "Datapacks": DATAPACK}
ROWS: dict[str, Row] = {row.key: row for rows in SECTIONS.values() for row in rows}
INTRO = """# The infctx trainer's keys, and ours

Written by `python scripts/from_infctx.py --table`; `python scripts/from_infctx.py CONFIG.yaml` does the translation. An empty middle
column: there is no such key here, and the last column says why. Keys that a configuration does not set are left at our defaults.
"""


def table() -> str:
    out = [INTRO]
    for title, rows in SECTIONS.items():
        out += [f"## {title}\n", "| infctx | here | |", "|---|---|---|"]
        for (here, about), same in groupby(rows, key=lambda row: (row.here, row.about)):
            out.append(f"| {', '.join(f'`{row.key}`' for row in same)} | {f'`{here}`' if here else ''} | {about} |")
        out.append("")
    return "\n".join(out)


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Dotted keys, as far as the table knows them; what is below a known key is its value."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        deeper = any(known.startswith(f"{name}.") for known in ROWS)
        if name == "trainer.callbacks" and isinstance(value, list):
            checkpoints = [v for v in value if "ModelCheckpoint" in str(v)]
            out |= {f"{name}[{v.get('class_path', i)}]": v for i, v in enumerate(value) if v not in checkpoints}
            value = checkpoints[0] if checkpoints else None
        out |= flat(value, f"{name}.") if deeper and isinstance(value, dict) else {name: value}
    return out


def convert(source: dict[str, Any]) -> Conversion:
    """What becomes of dotted keys of the trainer, model and data sections."""
    c = Conversion(source)
    for key, value in source.items():
        row = ROWS.get(key)
        if row is None and key.startswith("trainer.callbacks["):
            c.dropped[key] = "checkpoints and metrics are built in; there are no other callbacks"
        elif row is None:
            c.dropped[key] = "a key that the infctx trainer does not have either, as far as is known"
        elif value in row.neutral:
            continue
        elif row.convert is None:
            c.dropped[key] = row.about
        else:
            row.convert(c, key, value)
    if any(key.startswith("data.") for key in source):
        ROWS["data.packing_enable"].convert(c, "data.packing_enable", None)
    if source.get("trainer.gradient_clip_val", 0) is None:
        c.set(optim__clip=0.0)
    return c


def convert_pack(pack: dict, trainer: dict[str, Any]) -> Conversion:
    """A datapack, its sources as a mix, and what the trainer's own sections say beside the data."""
    rest = {key: value for key, value in trainer.items() if not key.startswith("data.")}
    whole = convert(rest | {f"datapack.{key}": value for key, value in (pack.get("datapack") or {}).items()})
    whole.set(_data="mix")
    mix: dict[str, dict] = {}
    for number, own in enumerate(pack["dataset"], 1):
        entry = {**(pack.get("default") or {}), **own}
        name = str(entry.pop("name", f"source{number}")).replace("/", "-").replace(".", "-")
        weight = entry.pop("dataset_weight", 1.0)
        if "source" in entry:
            entry.pop("data_path", None)
        one = convert({f"data.{key}": value for key, value in entry.items()} | {k: v for k, v in rest.items() if k == "model.ctx_len"})
        settings = {k: v for k, v in one.settings.items() if k.startswith("data.")}
        mix[name] = {"data": one.settings.get("/data", "files"), "weight": float(weight), **nested({k.removeprefix("data."): v for k, v in settings.items()})}
        for key, value in one.settings.items():
            if not key.startswith(("data.", "/data")):
                whole.settings.setdefault(key, value)
        whole.dropped |= {f"{name}: {key}": why for key, why in one.dropped.items()}
        for note in one.notes:
            whole.note(note)
    whole.set(data__mix=mix)
    if not any("dataset_weight" in own for own in pack["dataset"]):
        whole.note("no weights: each source has the same share of the tokens; set weight to a source's tokens to have each once")
    return whole


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """A tree of dotted keys."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


class _Quoted(yaml.SafeDumper):
    """Texts with line ends in double quotes, for that is how they can be edited."""


_Quoted.add_representer(str, lambda d, s: d.represent_scalar("tag:yaml.org,2002:str", s, style='"' if "\n" in s or "\\" in s else None))


def experiment(c: Conversion, name: str) -> str:
    """The YAML of conf/experiment."""
    groups = {key[1:]: value for key, value in c.settings.items() if key[0] == "/"}
    lines = ["# @package _global_", f"# from {name} of the infctx trainer, by scripts/from_infctx.py"]
    lines += ["defaults:", *(f'  - override /{group}: "{option}"' for group, option in groups.items())] if groups else []
    tree = nested({key: value for key, value in c.settings.items() if key[0] != "/"})
    return "\n".join(lines) + "\n" + (yaml.dump(tree, Dumper=_Quoted, sort_keys=False, allow_unicode=True, width=140) if tree else "")


def read(path: Path) -> Conversion:
    tree = yaml.safe_load(path.read_text())
    if not isinstance(tree, dict) or not ({"trainer", "model", "data", "dataset", "seed_everything"} & tree.keys()):
        sys.exit(f"{path}: no configuration of the infctx trainer: it has none of trainer, model, data and dataset")
    if "dataset" in tree:
        return convert_pack(tree, {})
    source = flat({key: value for key, value in tree.items() if value is not None})
    pack = source.get("data.datapack_config_path")
    if pack is None:
        return convert(source)
    file = next((f for f in (Path(pack), path.parent / pack) if f.is_file()), None)
    if file is None:
        sys.exit(f"{path}: data.datapack_config_path={pack}: no such file")
    return convert_pack(yaml.safe_load(file.read_text()), source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the experiment there")
    parser.add_argument("--table", action="store_true", help="print the table of keys")
    args = parser.parse_args()
    if args.table:
        print(table(), end="")
        return
    if args.config is None:
        parser.error("a configuration is needed, or --table")
    if not args.config.is_file():
        sys.exit(f"{args.config}: no such file")
    done = read(args.config)
    text = experiment(done, args.config.name)
    if args.write:
        args.write.write_text(text)
        print(f"{args.write} written; python -m rwkv.train experiment={args.write.stem} takes it, if it is in conf/experiment")
    else:
        print(text, end="")
    print(*(f"note: {note}" for note in done.notes), sep="\n", file=sys.stderr)
    print(*(f"left out: {key}: {why}" for key, why in done.dropped.items()), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
