"""What settings leave open, filled in."""

import dataclasses

from rwkv.config.schema import TrainConfig
from rwkv.model.size import FinchRank, LoraRank, Size


def size_of(cfg: TrainConfig, tokenizer_vocab: int) -> Size:
    """`model=` with what it leaves open filled in: the vocabulary is the tokenizer's, ranks follow the official rule."""
    m = cfg.model
    rank = None
    if cfg.arch.version == "v7":
        rank = LoraRank(**dataclasses.asdict(m.lora_rank)) if m.lora_rank else LoraRank.default(m.n_embd)
    elif cfg.arch.version == "v6":
        rank = FinchRank.default(m.n_embd)
    return Size(m.n_layer, m.n_embd, m.vocab_size or tokenizer_vocab, rank, m.head_size, cfg.arch.version)


def peak_lr(cfg: TrainConfig) -> float:
    """`optim.lr`, or the rule of thumb of the RWKV wiki: 0.45 / n_embd."""
    return cfg.optim.lr or 0.45 / cfg.model.n_embd
