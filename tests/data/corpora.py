"""Corpora whose every token is a number of its own, so that what was read can be told exactly."""

import numpy as np

from rwkv.data.batch import Batch
from rwkv.data.corpus import Corpus


def corpus(sizes, first=0, trained=None) -> Corpus:
    """Document i has the next sizes[i] numbers from `first` on."""
    sizes = np.asarray(sizes)
    tokens = np.arange(first, first + sizes.sum(), dtype=np.uint32)
    return Corpus(tokens, np.cumsum(sizes) - sizes, sizes, trained)


def ragged(n, seed=0, most=60):
    return np.random.default_rng(seed).integers(1, most, n)


def targets(batch: Batch, ctx_len: int = 7) -> list[int]:
    """Numbers of all tokens that the batch's chunks train."""
    out = []
    for i in range(batch.chunks(ctx_len)):
        chunk = batch.chunk(i, ctx_len, 1.0, "cpu")
        weight = chunk.weight if chunk.weight.dim() == 2 else chunk.weight.sum(0)
        out += chunk.targets[weight > 0].tolist()
    return out


def predictable(c: Corpus) -> list[int]:
    """All tokens but each document's first."""
    return [int(t) for i in range(len(c)) for t in c.document(i)[1:]]
