"""What is held out for validation, and what is known of a corpus."""

import numpy as np
import pytest

from rwkv.data.corpus import Corpus, split
from tests.data.corpora import corpus


def tokens_of(c: Corpus) -> list[int]:
    return [int(t) for i in range(len(c)) for t in c.document(i)]


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.4, 1 / 3, 0.21, 0.03])
def test_the_share_asked_for_is_held_out(share):
    docs = corpus([9] * 100)
    train, val = split(docs, share)
    assert len(val) == round(100 * share) and len(train) == 100 - len(val)
    assert sorted(tokens_of(train) + tokens_of(val)) == tokens_of(docs)
    assert train.count == 9 * len(train) and val.count == 9 * len(val)


@pytest.mark.parametrize("every", [2, 3, 7, 20, 100])
def test_the_middle_of_every_so_many(every):
    """A recipe's split is part of its expected losses: it must not move."""
    docs = corpus([9] * 238)
    _, val = split(docs, 1 / every)
    want = [docs.document(i) for i in range(len(docs)) if i % every == every // 2]
    assert tokens_of(val) == np.concatenate(want).tolist()


def test_of_few_documents_the_tails_are_held_out():
    few, rest = split(corpus([100] * 9), 0.05)
    assert len(few) == len(rest) == 9
    one = corpus([1000])
    head, tail = split(one, 0.1)
    assert tokens_of(head) + tokens_of(tail) == tokens_of(one) and tail.count == pytest.approx(100, abs=2)
    assert split(one, 0.0) == (one, None)


def test_something_is_left_to_predict():
    train, val = split(corpus([16] * 18), 0.05)  # the tails would be end tokens alone
    assert len(train) == 18 and val is None
    train, val = split(corpus([17] * 17 + [101]), 0.05)
    assert (len(val), val.count) == (1, 6)
    train, val = split(corpus([50, 50]), 0.99)  # no document would be left to train on
    assert len(train) == len(val) == 2


def test_a_view_of_many_documents_costs_little():
    """Documents are found by number without an array of all of them."""
    n = 10**6
    train, val = split(Corpus(np.empty(0, np.uint16), np.arange(n) * 7, np.full(n, 7, np.int32)), 0.001)
    assert (len(train), len(val)) == (n - 1000, 1000)
    starts, _ = train.spans(np.arange(len(train)))
    assert len(np.unique(starts)) == n - 1000 and not np.isin(val.starts, starts).any()
    assert len(train.held) == 1000


@pytest.mark.parametrize("longest", [3, 5])
def test_what_is_known_of_the_whole_is_known_of_its_part(longest):
    """With every tenth document held out, from the sixth on, document 5 is among them."""
    sizes = np.full(100, 7)
    sizes[longest] = 99
    train, val = split(corpus(sizes.tolist()), 0.1)
    real = train.spans(np.arange(len(train)))[1]
    assert (train.count, train.longest) == (real.sum(), real.max()) and val.longest == (99 if longest == 5 else 7)


def test_unigram_entropy():
    tokens = np.array([98, 98, 99, 99, 0], dtype=np.uint16)
    assert Corpus(tokens, np.array([0]), np.array([5])).unigram_entropy(257) == pytest.approx(1.0549, abs=1e-4)


def test_unigram_entropy_reads_a_file_piece_by_piece(tmp_path):
    n = 2**14 * 1000
    tokens = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint16, (n,))
    tokens[:] = np.arange(n) % 1000
    sizes = np.full(n // 1000, 1000)
    assert Corpus(tokens, np.cumsum(sizes) - sizes, sizes).unigram_entropy(1000) == pytest.approx(np.log(1000), abs=1e-4)
