"""Orders are permutations that depend on (seed, epoch) alone, however they are asked for."""

import math

import numpy as np
import pytest

from rwkv.data.order import cubic, magic_prime, permuted, shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 64, 65, 1000, 100_003])
def test_each_thing_once_an_epoch(n):
    order = shuffled(n, seed=3)
    epochs = order(np.arange(3 * n)).reshape(3, n)
    for epoch in epochs:
        assert (np.sort(epoch) == np.arange(n)).all()
    if n > 64:
        assert len({tuple(e[:50]) for e in epochs}) == 3
        assert not (order(np.arange(n)) == shuffled(n, seed=4)(np.arange(n))).all()


def test_asked_place_by_place_or_all_at_once():
    order, places = shuffled(1000, seed=1), np.arange(1990, 2010)  # across an epoch's end
    assert [int(order(np.array([p]))[0]) for p in places] == order(places).tolist()


def test_all_orders_of_few_things_come_about_equally_often():
    counts: dict[tuple, int] = {}
    for seed in range(2400):
        found = tuple(permuted(np.arange(4), 4, seed, 0).tolist())
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 24 and min(counts.values()) > 60 and max(counts.values()) < 150  # 100 each, five deviations of 10


def test_places_and_things_are_uncorrelated():
    x = permuted(np.arange(50_000), 50_000, 0, 0)
    assert abs(np.corrcoef(np.arange(50_000), x)[0, 1]) < 0.02
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("most", [5, 100, 1234])
def test_cubic_order_is_the_official_one(most):
    """`ii` counts from 1 in RWKV-LM's dataset; see data.md and the trainer's src/dataset.py for the formula."""
    p = magic_prime(most)
    assert p % 3 == 2 and p <= most and all(p % d for d in range(2, p))
    factor = (math.sqrt(5) - 1) / 2
    wanted = [(int(p * factor) * ii * ii * ii) % p for ii in range(1, p + 1)]
    assert cubic(p)(np.arange(p)).tolist() == wanted
    assert sorted(wanted) == list(range(p))


MINIPILE, PILE = 1_498_226_207, 332_115_325_534


@pytest.mark.parametrize(
    ("tokens", "length", "prime"),
    [(MINIPILE, 512, 2926181), (MINIPILE, 4096, 365759), (PILE, 1024, 324331313), (PILE, 2048, 162165671), (PILE, 4096, 81082817), (PILE, 8192, 40541399)],
)
def test_magic_primes(tokens, length, prime):
    """As RWKV-LM's README and scripts give them."""
    assert magic_prime(tokens // length - 1) == prime


def test_offsets_of_the_minipile():
    want = {1: 925941248, 2: 1414711296, 3: 1029138944, 4: 830257664, 40321: 631271424}
    order = cubic(2926181)
    assert {i: int(order(np.array([i - 1]))[0]) * 512 for i in want} == want


def test_no_prime_among_few():
    assert magic_prime(1) is None
