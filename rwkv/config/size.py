"""The model's sizes that settings describe."""

import dataclasses

from rwkv.config.schema import TrainConfig
from rwkv.model.size import LoraRank, Size


def size_of(cfg: TrainConfig, tokenizer_vocab: int) -> Size:
    """`model=` with what it leaves open filled in: the vocabulary is the tokenizer's, ranks follow the official rule."""
    m = cfg.model
    rank = LoraRank(**dataclasses.asdict(m.lora_rank)) if m.lora_rank else LoraRank.default(m.n_embd)
    return Size(m.n_layer, m.n_embd, m.vocab_size or tokenizer_vocab, rank, m.head_size)
