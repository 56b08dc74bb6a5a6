"""What settings leave open, filled in."""

import dataclasses

from rwkv.config.schema import TrainConfig
from rwkv.errors import ConfigError
from rwkv.kernels.registry import Kernels
from rwkv.model.rwkv import GENERATIONS, RWKV
from rwkv.model.size import LoraRank, Size
from rwkv.model.state import DTYPES


def size_of(cfg: TrainConfig, tokenizer_vocab: int, found: Size | None = None) -> Size:
    """The model's size: that of the file `model.path`, if its size `found` is given, else `model=` with what it leaves
    open filled in: the vocabulary is the tokenizer's, ranks follow the official rule.

    Raises:
        ConfigError: settings that contradict the file, or a vocabulary smaller than the tokenizer's.
    """
    m, version = cfg.model, cfg.arch.version
    if found is not None:
        wanted = {"arch.version": version, **{f"model.{n}": getattr(m, n) for n in ("n_layer", "n_embd", "head_size", "vocab_size")}}
        has = {"arch.version": found.version, **{f"model.{n}": getattr(found, n) for n in ("n_layer", "n_embd", "head_size", "vocab_size")}}
        wrong = [f"{key}={want}, but {m.path} has {has[key]}" for key, want in wanted.items() if want is not None and want != has[key]]
        if found.vocab_size < tokenizer_vocab:
            wrong.append(f"{m.path} has a vocabulary of {found.vocab_size}, tokenizer={cfg.tokenizer.kind} one of {tokenizer_vocab}; choose the model's tokenizer=")
        if wrong:
            raise ConfigError("\n".join(wrong))
        return found
    if m.vocab_size and m.vocab_size < tokenizer_vocab:
        raise ConfigError(f"model.vocab_size={m.vocab_size} is smaller than the {tokenizer_vocab} tokens of tokenizer={cfg.tokenizer.kind}")
    rank = GENERATIONS[version].default_rank(m.n_embd)
    if m.lora_rank and isinstance(rank, LoraRank):
        rank = LoraRank(**dataclasses.asdict(m.lora_rank))
    return Size(m.n_layer, m.n_embd, m.vocab_size or tokenizer_vocab, rank, m.head_size, version)


def model_of(cfg: TrainConfig, size: Size) -> RWKV:
    """A model of that size, its parameters uninitialised."""
    return RWKV(size, kernels_of(cfg, size), DTYPES.get(cfg.precision.residual))


def kernels_of(cfg: TrainConfig, size: Size) -> Kernels:
    """The backends that `model.kernel` asks for. Raises KernelError at an operation that such a model has not."""
    return Kernels.of(cfg.model.kernel, GENERATIONS[size.version].WKV)


def peak_lr(cfg: TrainConfig, size: Size) -> float:
    """`optim.lr`, or the rule of thumb of the RWKV wiki: 0.45 / n_embd."""
    return cfg.optim.lr or 0.45 / size.n_embd
