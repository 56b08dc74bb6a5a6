"""Checks across settings, before anything heavy is imported."""

import re

from rwkv.config.compose import groups
from rwkv.config.schema import Data, Record, TrainConfig
from rwkv.config.vocab import VOCAB_SIZES
from rwkv.errors import ConfigError


def check(cfg: TrainConfig, reads_data: bool = True) -> None:
    """Raises ConfigError that lists every contradiction, each with what to change."""
    rules = [*_rules(cfg), *(_data_rules(cfg) if reads_data else ())]
    problems = [text for wrong, text in rules if wrong]
    if problems:
        raise ConfigError("\n".join(problems))


def _rules(cfg: TrainConfig):
    m, world = cfg.model, (cfg.strategy.devices if isinstance(cfg.strategy.devices, int) else 1) * cfg.strategy.nodes
    versions = [option for option in groups()["arch"].options if option != "from_file"]
    yield cfg.arch.version not in (None, *versions), f"arch.version={cfg.arch.version}: there is no such generation; arch has {', '.join(versions)}"
    blank = [f"model.{n}" for n in ("n_layer", "n_embd", "head_size") if getattr(m, n) is None] + (["arch.version"] if cfg.arch.version is None else [])
    yield bool(blank) and m.path is None, f"{', '.join(blank)} not set: with model=from_file a file is needed: model.path=FILE_OR_RUN"
    uneven = cfg.arch.version != "v4" and m.n_embd and m.head_size and m.n_embd % m.head_size != 0
    yield uneven, f"model.n_embd={m.n_embd} is not a multiple of model.head_size={m.head_size}"
    deepspeed = cfg.strategy.kind.startswith("ds")
    yield bool(cfg.strategy.deepspeed) and not deepspeed, f"strategy.deepspeed is for strategy=ds1 to ds3 alone: leave it out of strategy={cfg.strategy.kind}"
    yield (
        cfg.strategy.swap is not None and cfg.strategy.kind != "ds3_nvme",
        f"strategy.swap={cfg.strategy.swap} is for strategy=ds3_nvme alone: leave it out of strategy={cfg.strategy.kind}",
    )
    yield (
        cfg.precision.residual is not None and cfg.precision.weights != "bf16",
        f"precision.residual={cfg.precision.residual} is for bf16 weights, and precision.weights={cfg.precision.weights}: set precision=bf16-mixed, or leave it out",
    )
    yield deepspeed and cfg.precision.weights == "fp64", f"strategy={cfg.strategy.kind}: DeepSpeed has no fp64; set strategy=fsdp, or precision=fp32"
    yield (
        cfg.strategy.kind.startswith("ds3") and cfg.bptt.recompute == "selective",
        f"strategy={cfg.strategy.kind} with bptt.recompute=selective would keep every weight that it gathers: set bptt.recompute=true, or strategy=fsdp",
    )
    processes = f"{world} processes (strategy.devices={cfg.strategy.devices}, strategy.nodes={cfg.strategy.nodes})"
    near = f"layout.rows={max(1, cfg.layout.rows // world) * world} or another multiple of {world}"
    yield cfg.layout.rows % world != 0, f"layout.rows={cfg.layout.rows} cannot be dealt equally to {processes}: set {near}"
    yield (
        cfg.bptt.mode == "off" and cfg.layout.kind != "document" and cfg.layout.chunks != 1,
        f"bptt=off learns from one chunk at a time: set layout.chunks=1 (is {cfg.layout.chunks})",
    )
    yield (
        cfg.bptt.mode == "truncated" and cfg.layout.kind != "document" and cfg.bptt.depth > cfg.layout.chunks,
        f"bptt.depth={cfg.bptt.depth}: a step of layout={cfg.layout.kind} has {cfg.layout.chunks} chunks for a gradient to go back through; "
        f"set layout.chunks={cfg.bptt.depth} or more",
    )
    yield (
        cfg.layout.kind in ("fixed", "official") and cfg.layout.max_tokens is not None,
        f"layout.max_tokens={cfg.layout.max_tokens} is for whole documents, and layout={cfg.layout.kind} cuts them to samples: leave it out",
    )
    yield cfg.layout.kind == "official" and cfg.layout.reset, "layout=official tells no documents apart: set layout.reset=false, or layout=fixed"
    known = VOCAB_SIZES.get(cfg.tokenizer.kind)
    yield (
        bool(m.vocab_size and known and m.vocab_size < known),
        f"model.vocab_size={m.vocab_size} is smaller than the {known} tokens of tokenizer={cfg.tokenizer.kind}",
    )


def _data_rules(cfg: TrainConfig):
    mixed = cfg.data.kind == "mix"
    yield (
        mixed and not cfg.data.mix,
        "data=mix needs sources: data.mix='{books: {data: text, path: books/, weight: 2}, chats: {data: jsonl, path: chats.jsonl}}'",
    )
    yield bool(cfg.data.mix) and not mixed, f"data.mix has sources, and data.kind={cfg.data.kind}: set data=mix"
    for where, data in {"data": cfg.data, **{f"data.mix.{name}": source.data for name, source in (cfg.data.mix or {}).items()}}.items():
        yield from _source_rules(where, data)


def _source_rules(where: str, data: Data):
    yield data.kind in ("files", "tokens", "binidx") and data.path is None, f"{where}.kind={data.kind} needs {where}.path"
    yield data.kind == "hub" and data.name is None, f"{where}.kind=hub needs {where}.name"
    named = [f"{where}.{key}={value}" for key, value in (("name", data.name), ("config", data.config), ("revision", data.revision)) if value is not None]
    yield (
        data.kind != "hub" and bool(named),
        f"{', '.join(named)}: of data sets of the Hugging Face hub, and {where}.kind={data.kind}: leave it out, or set data=hub",
    )
    yield data.streaming and data.kind != "hub", f"{where}.streaming=true is for data sets of the hub, and {where}.kind={data.kind}: leave it out"
    yield (
        data.streaming and any("[" in split or "+" in split for split in (data.split, data.val_split or "")),
        f"{where}.split={data.split}: a slice of a split cannot be read while it is downloaded; set {where}.streaming=false, or use {where}.first and limit",
    )
    yield (
        data.val_path is not None and data.val_split is not None,
        f"{where}.val_path={data.val_path} and {where}.val_split={data.val_split}: one of them is the validation; leave the other out",
    )
    splits = [f"{where}.{key}={value}" for key, value in (("split", data.split), ("val_split", data.val_split)) if value not in ("train", None)]
    yield (
        bool(splits) and not (data.kind == "hub" or data.kind == "files" and data.format in ("auto", "arrow")),
        f"{', '.join(splits)}: what {where} reads has no splits (data=hub and data=arrow do); {where}.val_path names other files for validation",
    )
    raw = sorted({text for text in _templates(data.record) if re.search(r"\\[nt]", text)})
    yield (
        bool(raw),
        f"{where}.record holds {', '.join(map(repr, raw))}, a backslash and a letter, not a line end: in YAML it is written in double quotes, "
        "in a shell as $'...'",
    )


def _templates(record: Record):
    """What is written around the texts of a record."""
    forms = [*record.columns, *record.chat.roles.values(), *filter(None, [record.chat.other])]
    return [record.separator, record.chat.end, *record.chat.also.values(), *(text for form in forms for text in (form.prefix, form.lead, form.suffix))]
