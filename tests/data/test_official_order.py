"""RWKV-LM's order of samples, against the numbers it prints and reads."""

from types import SimpleNamespace

import numpy as np
import pytest

from rwkv import train
from rwkv.data.official_order import Official, magic_prime
from rwkv.errors import DataError
from tests.conftest import tiny, write_text

MINIPILE, PILE = 1_498_226_207, 332_115_325_534


@pytest.mark.parametrize(
    ("tokens", "length", "prime"),
    [(MINIPILE, 512, 2926181), (MINIPILE, 4096, 365759), (PILE, 1024, 324331313), (PILE, 2048, 162165671), (PILE, 4096, 81082817), (PILE, 8192, 40541399)],
)
def test_magic_primes(tokens, length, prime):
    assert magic_prime(tokens, length) == prime


class Tokens:
    """As many tokens as the Minipile has, none of them read."""

    def __len__(self):
        return MINIPILE


def test_offsets_of_the_minipile():
    order = Official(SimpleNamespace(tokens=Tokens()), 16, 512)
    assert order.multiplier == 1808479
    want = {1: 925941248, 2: 1414711296, 3: 1029138944, 4: 830257664, 40321: 631271424}
    assert {i: order.start(i) for i in want} == want


def test_every_place_once():
    tokens = np.arange(2000, dtype=np.uint16)
    order = Official(SimpleNamespace(tokens=tokens), 3, 16)
    starts = [order.start(i) for i in range(1, order.prime + 1)]
    assert sorted(starts) == [16 * i for i in range(order.prime)]
    batch = order.batch(1)
    assert batch.tokens[:, 0].tolist() == starts[3:6] and batch.tokens.shape == (3, 17)
    assert not batch.carry and batch.reset is None and batch.predict.all()


def test_too_short():
    with pytest.raises(DataError, match="at least 3 samples of 512 tokens"):
        magic_prime(1000, 512)


def test_trains(tmp_path, capsys):
    write_text(tmp_path / "t.txt")
    assert train.main(tiny("data=text", f"data.path={tmp_path / 't.txt'}", f"out={tmp_path / 'out'}", "layout=official", "layout.rows=2")) == 0
    assert "2 samples x 1 chunks of 32 = 64 tokens a step, 20 steps, in RWKV-LM's order" in capsys.readouterr().out
