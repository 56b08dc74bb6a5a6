"""The order in which RWKV-LM's trainer reads its data: one flat stream of tokens, cut into samples, visited by a cubic rule.

With L tokens a sample, P the largest prime of the form 3n + 2 that is at most tokens // L - 1, and M = floor(P (sqrt 5 - 1) / 2),
sample number i = 1, 2, ... begins at token ((M i^3) mod P) L. Since cubing is a bijection modulo such a prime, P samples
visit P different places. Documents are not told apart, and each sample begins from the zero state.
"""

import math

import numpy as np

from rwkv.data.corpus import Corpus
from rwkv.data.layout import Batch
from rwkv.errors import DataError


class Official:
    """`rows` samples of `length` tokens a batch, whatever the number of processes."""

    def __init__(self, corpus: Corpus, rows: int, length: int):
        self.corpus, self.rows, self.length = corpus, rows, length
        self.prime = magic_prime(len(corpus.tokens), length)
        self.multiplier = int(self.prime * (math.sqrt(5) - 1) / 2)
        self.steps_per_epoch = -(-self.prime // rows)
        self.tokens_per_step = float(rows * length)

    def start(self, sample: int) -> int:
        """The first token of sample 1, 2, ..."""
        return self.multiplier * sample**3 % self.prime * self.length  # Python's integers: the cube passes 64 bits

    def batch(self, index: int) -> Batch:
        """The index-th batch of the run, any index."""
        starts = [self.start(1 + index * self.rows + row) for row in range(self.rows)]
        tokens = np.stack([self.corpus.tokens[s : s + self.length + 1] for s in starts])
        return Batch(tokens, np.broadcast_to(True, (self.rows, self.length)), None, carry=False)


def magic_prime(tokens: int, length: int) -> int:
    """The largest prime of the form 3n + 2 that is at most tokens // length - 1. Raises DataError if there is none."""
    for p in range(tokens // length - 1, 1, -1):
        if p % 3 == 2 and all(p % d for d in range(2, math.isqrt(p) + 1)):
            return p
    raise DataError(f"layout=official needs at least 3 samples of {length} tokens (layout.chunks x ctx_len), the training text has {tokens} tokens")
