"""What each optimizer step reads: everything once an epoch, nothing across documents, the same for any number of ranks."""

import tracemalloc

import numpy as np
import pytest

from rwkv.data.corpus import Corpus, load_tokens, split, tokenise
from rwkv.data.layout import Documents, Stream, shuffled
from rwkv.data.tokenizer import Bytes
from rwkv.errors import DataError


def corpus(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return tokenise(((str(i), bytes(rng.integers(97, 123, n, dtype=np.uint8))) for i, n in enumerate(sizes)), Bytes())


DOCS = corpus([5, 50, 1, 33, 80, 12, 7, 64, 3, 21])


def test_tokenise_ends_each_document():
    assert [len(DOCS.document(i)) for i in range(len(DOCS))] == [6, 51, 2, 34, 81, 13, 8, 65, 4, 22]
    assert all(DOCS.document(i)[-1] == 0 and (DOCS.document(i)[:-1] > 0).all() for i in range(len(DOCS)))


def test_stream_reads_each_lane_on_and_everything_once():
    stream = Stream(DOCS, rows=3, step_tokens=16, seed=1)
    batches = [stream.batch(i) for i in range(stream.steps_per_epoch)]
    for before, after in zip(batches, batches[1:], strict=False):
        assert after.carry and (before.tokens[:, -1] == after.tokens[:, 0]).all()
    assert not batches[0].carry
    read = np.concatenate([b.tokens[:, :-1] for b in batches], 1)
    assert read.shape == (3, stream.lane)
    whole = np.concatenate([DOCS.document(i) for i in shuffled(len(DOCS), 1, 0)])
    assert (read.ravel() == whole[: 3 * stream.lane]).all()


def test_stream_resets_at_documents_and_never_predicts_across_them():
    stream = Stream(DOCS, rows=1, step_tokens=64, seed=1)
    order = shuffled(len(DOCS), 1, 0)
    starts = np.cumsum([0, *np.diff(DOCS.offsets)[order]])
    batches = [stream.batch(i) for i in range(stream.steps_per_epoch)]
    reset = np.concatenate([b.reset for b in batches], 1)[0]
    predict = np.concatenate([b.predict for b in batches], 1)[0]
    assert set(np.flatnonzero(reset)) == {s for s in starts if s < len(reset)}
    assert set(np.flatnonzero(~predict)) == {s - 1 for s in starts[1:] if s - 1 < len(predict)}


def test_stream_epochs_differ_and_any_batch_can_be_asked_first():
    stream = Stream(DOCS, 2, 16, seed=1)
    last = stream.batch(stream.steps_per_epoch + 3)
    assert (Stream(DOCS, 2, 16, seed=1).batch(stream.steps_per_epoch + 3).tokens == last.tokens).all()
    assert not (stream.batch(3).tokens == last.tokens).all()
    assert not (Stream(DOCS, 2, 16, seed=2).batch(3).tokens == stream.batch(3).tokens).all()


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_documents_are_whole_and_each_comes_once(rows):
    layout = Documents(DOCS, rows, seed=4)
    seen = []
    for i in range(layout.steps_per_epoch):
        batch = layout.batch(i)
        assert not batch.carry and batch.reset is None and len(batch.tokens) == rows
        for tokens, predict in zip(batch.tokens, batch.predict, strict=True):
            n = int(predict.sum())
            if n:
                assert predict[:n].all()
                seen.append(bytes(tokens[: n + 1].astype(np.uint8)))
    assert sorted(seen) == sorted(bytes(DOCS.document(i).astype(np.uint8)) for i in range(len(DOCS)))


def test_documents_longer_than_the_limit_are_cut_and_counted():
    layout = Documents(DOCS, 1, seed=4, max_tokens=20)
    assert layout.cut_documents == sum(n > 21 for n in np.diff(DOCS.offsets))
    batches = [layout.batch(i) for i in range(layout.steps_per_epoch)]
    assert max(b.length for b in batches) == 20
    assert sum(b.predicted for b in batches) == sum(np.diff(DOCS.offsets) - 1)


@pytest.mark.parametrize("layout", [Stream(DOCS, 4, 16, 1), Documents(DOCS, 4, 1)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_rows_of_a_batch(layout, ranks):
    for i in range(layout.steps_per_epoch):
        whole = layout.batch(i)
        parts = [whole.rows(r, ranks) for r in range(ranks)]
        assert sum(p.predicted for p in parts) == whole.predicted
        for r, part in enumerate(parts):
            assert (part.tokens == whole.tokens[r::ranks, : part.length + 1]).all()


def test_chunks_cover_a_batch_and_weigh_one():
    batch = Stream(DOCS, 3, 40, seed=1).batch(0)
    chunks = [batch.chunk(i, 16, batch.predicted, "cpu") for i in range(batch.chunks(16))]
    assert [c.tokens.shape[1] for c in chunks] == [16, 16, 8]
    assert sum(c.weight.sum() for c in chunks) == pytest.approx(1)
    assert all((a.targets[:, -1] == b.tokens[:, 0]).all() for a, b in zip(chunks, chunks[1:], strict=False))


def test_split_holds_documents_out_whatever_the_seed():
    train, val = split(corpus([10] * 40), 0.05)
    assert (len(train), len(val)) == (38, 2)
    few, rest = split(corpus([100] * 9), 0.05)  # less than one document: a tail of each
    assert len(few) == len(rest) == 9
    one = corpus([1000])
    head, tail = split(one, 0.1)
    assert (np.concatenate([head.tokens, tail.tokens]) == one.tokens).all() and len(tail.tokens) == pytest.approx(100, abs=2)
    assert split(one, 0.0) == (one, None)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.4, 1 / 3, 0.21, 0.03])
def test_split_holds_out_the_share_asked_for(share):
    train, val = split(corpus([9] * 100), share)
    assert len(val) == round(100 * share) and len(train) == 100 - len(val)


@pytest.mark.parametrize("every", [2, 3, 7, 20, 100])
def test_split_takes_the_middle_of_every_so_many(every):
    """A recipe's split is part of its expected losses: it must not move."""
    docs = corpus([9] * 238)
    _, val = split(docs, 1 / every)
    want = [docs.document(i) for i in range(len(docs)) if i % every == every // 2]
    assert (val.tokens == np.concatenate(want)).all()


def test_split_leaves_something_to_predict():
    train, val = split(corpus([16] * 18), 0.05)  # the tails would be end tokens alone
    assert len(train) == 18 and val is None
    some = tokenise([(str(n), b"x" * n) for n in [16] * 17 + [100]], Bytes())
    train, val = split(some, 0.05)
    assert (len(val), val.predictable) == (1, 5)
    train, val = split(corpus([50, 50]), 0.99)  # no document would be left to train on
    assert len(train) == len(val) == 2


def test_fingerprint_changes_with_any_token():
    tokens = DOCS.tokens.copy()
    tokens[7] += 1
    assert Corpus(tokens, DOCS.offsets).fingerprint != DOCS.fingerprint


def test_unigram_entropy():
    assert tokenise([("a", b"aabb")], Bytes()).unigram_entropy(257) == pytest.approx(1.0549, abs=1e-4)


def test_a_memory_map_is_read_in_place(tmp_path):
    """Counting and reading rows take memory for what is asked of it, not for all of it."""
    n = 2**14 * 1000
    np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint16, (n,))[:] = np.arange(n) % 1000
    tracemalloc.start()
    mapped = load_tokens(str(tmp_path / "t.npy"), 1000)
    _, val = split(mapped, 0.0)
    assert mapped.unigram_entropy(1000) == pytest.approx(np.log(1000), abs=1e-4) == mapped.unigram_entropy(1000)
    assert Stream(mapped, 4, 64, seed=1).batch(5).tokens.shape == (4, 65)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(mapped) == n // 1000 + 1 and val is None and peak < n  # half the bytes of the file


def test_too_few_tokens_for_the_rows():
    with pytest.raises(DataError, match="too few for layout.rows=400"):
        Stream(DOCS, 400, 16, 1)
