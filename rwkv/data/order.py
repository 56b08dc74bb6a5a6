"""Orders in which things are read: pure functions of few numbers, without an array of all things.

`shuffled` is a permutation of 0 .. n - 1 by a Feistel network over the smallest power of two that holds n, walked along its
cycles until a number below n comes (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). `cubic` is RWKV-LM's.
"""

import math
from collections.abc import Callable

import numpy as np

Order = Callable[[np.ndarray], np.ndarray]  # place in the run, from 0 on -> number of the thing read there; int64 both
ROUNDS = 4


def in_turn(n: int) -> Order:
    return lambda places: places % n


def shuffled(n: int, seed: int) -> Order:
    """Each epoch of n places its own permutation."""

    def order(places: np.ndarray) -> np.ndarray:
        epochs = places // n
        out = np.empty_like(places)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            out[mine] = permuted(places[mine] - epoch * n, n, seed, int(epoch))
        return out

    return order


def permuted(x: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of 0 .. n - 1 that depends on (seed, epoch) takes the numbers x."""
    keys = np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(0, 2**64, 2 * ROUNDS, dtype=np.uint64)
    bits = max(2, (n - 1).bit_length())
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)
    out = x.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> low, out[todo] & low_mask
        for first, second in keys.reshape(ROUNDS, 2):
            left ^= _mix(right + first) & high_mask
            right ^= _mix(left + second) & low_mask
        out[todo] = left << low | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def cubic(prime: int) -> Order:
    """RWKV-LM's: with M = floor(P (sqrt 5 - 1) / 2), the thing read at place i, from 1 on, is M i^3 mod P.

    Cubing is a bijection modulo a prime P of the form 3n + 2, so P places visit P different things.
    """
    multiplier = int(prime * (math.sqrt(5) - 1) / 2)

    def order(places: np.ndarray) -> np.ndarray:
        return np.array([multiplier * (int(i) + 1) ** 3 % prime for i in places], dtype=np.int64)  # the cube passes 64 bits

    return order


def magic_prime(most: int) -> int | None:
    """The largest prime of the form 3n + 2 that is at most `most`."""
    for p in range(most, 1, -1):
        if p % 3 == 2 and all(p % d for d in range(2, math.isqrt(p) + 1)):
            return p
    return None
