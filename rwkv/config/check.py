"""Checks across settings, before anything heavy is imported."""

from rwkv.config.compose import groups
from rwkv.config.schema import TrainConfig
from rwkv.config.vocab import VOCAB_SIZES
from rwkv.errors import ConfigError

BUILT_STRATEGIES = ("auto", "ddp")


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
    yield (
        cfg.strategy.kind not in BUILT_STRATEGIES,
        f"strategy={cfg.strategy.kind} is not built yet; today: {', '.join(BUILT_STRATEGIES)} (it composes: --cfg job)",
    )
    yield cfg.layout.rows % world != 0, f"layout.rows={cfg.layout.rows} cannot be dealt equally to {world} processes; use a multiple of {world}"
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
    yield mixed and not cfg.data.mix, "data=mix needs sources: data.mix='{books: {data: text, path: books/, weight: 2}, chats: {data: jsonl, path: chats.jsonl}}'"
    yield bool(cfg.data.mix) and not mixed, f"data.mix has sources, and data.kind={cfg.data.kind}: set data=mix"
    lone = [n for n, s in (cfg.data.mix or {}).items() if s.data.kind in ("files", "tokens", "binidx") and s.data.path is None]
    yield bool(lone), f"data.mix: {', '.join(lone)} needs a path"
    yield (
        cfg.data.kind == "hub",
        f"data.name={cfg.data.name}: reading from the Hugging Face hub is not built yet; today: data=sample, "
        "data=text data.path=FILE_OR_FOLDER, data=tokens data.path=FILE.npy",
    )
    yield cfg.data.kind in ("files", "tokens", "binidx") and cfg.data.path is None, f"data.kind={cfg.data.kind} needs data.path"
