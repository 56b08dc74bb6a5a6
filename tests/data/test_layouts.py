"""What each optimizer step reads: everything once an epoch, nothing across documents, the same for any number of ranks."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
import yaml

from rwkv.config.compose import conf_dir
from rwkv.config.schema import Layout as Settings
from rwkv.data.batch import Batch
from rwkv.data.corpus import split
from rwkv.data.feed import Pieces
from rwkv.data.layout import Source, build, validation
from rwkv.errors import DataError
from tests.data.corpora import corpus, predictable, ragged, targets

DOCS = corpus([6, 51, 2, 34, 81, 13, 8, 65, 4, 22, 1, 1, 17])
CTX = 8


def settings(kind, **changes) -> Settings:
    return dataclasses.replace(Settings(**yaml.safe_load((conf_dir() / f"layout/{kind}.yaml").read_text())), **changes)


def layout(kind, docs=DOCS, ctx=CTX, seed=1, independent=False, **changes):
    sources = docs if isinstance(docs, list) else [Source("docs", docs)]
    return build(settings(kind, **changes), sources, ctx, seed, independent)[0]


def epoch(made, wanted: int) -> list[Batch]:
    """Batches until so many tokens are trained."""
    batches, done = [], 0
    while done < wanted:
        batches.append(made.next())
        done += batches[-1].predicted
    return batches


CASES = {
    "stream": dict(kind="stream", rows=3, chunks=2),
    "stream, one lane": dict(kind="stream", rows=1, chunks=1),
    "documents": dict(kind="document", rows=3),
    "documents, one row": dict(kind="document", rows=1),
    "documents, capped": dict(kind="document", rows=2, max_tokens=16),
    "documents, rows of 3 chunks": dict(kind="document", rows=2, chunks=3, window=2),
}


@pytest.mark.parametrize("case", CASES)
def test_every_token_is_a_target_once_an_epoch(case):
    made = layout(**CASES[case])
    wanted = predictable(DOCS)
    lanes = case.startswith("stream")  # in which others may begin the next epoch while one is in its last document
    seen = [t for batch in epoch(made, len(wanted) + (200 if lanes else 0)) for t in targets(batch)]
    times = np.bincount(seen, minlength=DOCS.count)
    assert set(seen) == set(wanted)
    assert times[wanted].max() <= (2 if lanes else 1)


@pytest.mark.parametrize("case", CASES)
def test_shuffled_each_epoch_and_by_the_seed(case):
    many = corpus(ragged(200))
    made, same, other = layout(docs=many, **CASES[case]), layout(docs=many, **CASES[case]), layout(docs=many, seed=2, **CASES[case])
    n = len(predictable(many))
    first, second = ([targets(b) for b in epoch(made, n)] for _ in range(2))
    assert first == [targets(b) for b in epoch(same, n)]
    assert first[:3] != second[:3]
    assert first[:3] != [targets(b) for b in epoch(other, n)][:3]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mixed", [False, True])
def test_goes_on_from_any_place(case, mixed):
    docs = [Source("a", corpus(ragged(30)), 2.0), Source("b", corpus(ragged(9, 1), 10_000), 1.0)] if mixed else corpus(ragged(40))
    whole = layout(docs=docs, **CASES[case])
    batches, states = [], []
    for _ in range(60):
        states.append(json.loads(json.dumps(whole.state_dict())))  # as in a checkpoint
        batches.append(targets(whole.next()))
    for at in (0, 1, 7, 31, 58):
        again = layout(docs=docs, **CASES[case])
        again.load_state_dict(states[at])
        assert [targets(again.next()) for _ in range(60 - at)] == batches[at:]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["stream", "document", "fixed"])
def test_ranks_share_what_one_process_reads(kind, ranks):
    made = layout(kind, rows=6)
    for _ in range(20):
        batch = made.next()
        parts = [batch.rank(r, ranks) for r in range(ranks)]
        assert sorted(t for p in parts for t in targets(p)) == sorted(targets(batch))
        assert batch.predicted == sum(p.predicted for p in parts) == len(targets(batch))
        assert max(p.length for p in parts) == batch.length


def follow(batches, reset=True):
    """Walk the rows as a model does, whose state is the tokens it has seen since it was cleared; check every target by it."""
    states: list[list[int]] = [[] for _ in batches[0].rows]
    for batch in batches:
        if not batch.carry:
            states = [[] for _ in batch.rows]
        for i in range(batch.chunks(CTX)):
            chunk = batch.chunk(i, CTX, 1.0, "cpu")
            for row, seen in enumerate(states):
                for t in range(chunk.tokens.shape[1]):
                    if chunk.reset is not None and chunk.reset[row, t]:
                        seen.clear()
                    seen.append(int(chunk.tokens[row, t]))
                    if chunk.weight[row, t] > 0:
                        assert int(chunk.targets[row, t]) == seen[-1] + 1
                        yield seen


@pytest.mark.parametrize("case", CASES)
def test_a_target_is_predicted_from_the_whole_of_its_document_and_nothing_else(case):
    starts = set(DOCS.starts.tolist())
    checked = 0
    made = layout(**CASES[case])
    limit = made.feed.supplies[0].items.limit
    for seen in follow(epoch(made, 600)):
        inside = DOCS.starts[np.searchsorted(DOCS.starts, seen[0], side="right") - 1]
        assert seen[0] in starts or (limit and (seen[0] - inside) % limit == 0)
        assert seen == list(range(seen[0], seen[0] + len(seen)))  # without gap or mixture
        checked += 1
    assert checked >= 600


def test_without_resets_the_state_goes_on_and_labels_still_end_with_their_document():
    made = layout("stream", rows=1, chunks=4, reset=False)
    firsts = set(DOCS.starts.tolist())
    longest = 0
    for seen in follow(epoch(made, 500)):
        assert seen[-1] + 1 not in firsts
        longest = max(longest, len(seen))
    assert longest > 500  # nothing was cleared


def test_documents_of_a_row_share_it_and_rows_have_about_equal_chunks():
    many = corpus(np.concatenate([ragged(300, 1, 10), ragged(40, 2, 200)]))
    made = layout("document", docs=many, rows=4, chunks=3, window=64)
    batches = epoch(made, len(predictable(many)))
    fill = sum(b.count for b in batches) / sum(b.length * 4 for b in batches)
    assert fill > 0.85
    assert max(len(row) for b in batches for row in b.rows) > 3


def test_a_capped_document_goes_on_in_its_row_with_its_state():
    made = layout("document", docs=corpus([200, 30, 5, 4, 90]), rows=2, max_tokens=16)
    batches = epoch(made, 324)
    assert max(b.length for b in batches) == 16
    whole = max((seen[:] for seen in follow(batches)), key=len)
    assert len(whole) == 199  # all of the longest document stood behind its last target


def test_off_cuts_and_carries_nothing():
    made, cut = build(settings("document", rows=1), [Source("docs", DOCS)], CTX, 1, independent=True)
    assert cut == sum(n - 1 > CTX for n in DOCS.sizes)
    assert all(b.length <= CTX and not b.carry for b in epoch(made, 600))
    stream = layout("stream", independent=True, rows=2)
    assert not any(stream.next().carry for _ in range(20))


def test_a_lone_document_is_shared_by_the_lanes():
    made, cut = build(settings("stream", rows=4), [Source("docs", corpus([385]))], CTX, 1, independent=False)
    assert cut == 1
    seen = [t for b in epoch(made, 384) for t in targets(b)]
    assert sorted(seen) == list(range(1, 385))


def test_fixed_samples():
    made = layout("fixed", docs=corpus([10, 23, 7, 60]), rows=2, chunks=2)
    batches = epoch(made, 80)
    seen = [t for b in batches for t in targets(b)]
    assert len(seen) == len(set(seen)) and not {10, 33, 40} & set(seen)  # first tokens are predicted by nothing
    assert all(b.length == 16 and not b.carry for b in batches)
    assert all(seen == list(range(seen[0], seen[0] + len(seen))) for seen in follow(batches))


def test_official_samples_run_on_over_documents():
    docs = corpus([10, 23, 7, 60, 44])
    made = layout("official", docs=docs, rows=1)
    prime = 17  # the largest 3n + 2 up to 144 / 8 - 1
    starts = [int(prime * (5**0.5 - 1) / 2) * i**3 % prime * CTX for i in range(1, prime + 1)]
    assert [targets(made.next()) for _ in range(prime)] == [list(range(s + 1, s + CTX + 1)) for s in starts]


def test_official_samples_leave_out_what_is_held_out():
    train, val = split(corpus([20] * 40), 0.1)
    made = layout("official", docs=train, rows=1)
    seen = {t for _ in range(200) for t in targets(made.next())}
    assert not seen & {int(t) for i in range(len(val)) for t in val.document(i)}


def test_masked_tokens_are_no_targets():
    trained = np.random.default_rng(0).random(DOCS.count) < 0.5
    masked = corpus(DOCS.sizes, trained=trained)
    wanted = [t for t in predictable(masked) if trained[t]]
    for case in CASES.values():
        batches = epoch(layout(docs=masked, **case), len(wanted))
        assert set(wanted) == {t for b in batches for t in targets(b)}
        assert all(b.predicted == len(targets(b)) for b in batches)


def test_a_mix_keeps_its_weights_all_along():
    sources = [Source("a", corpus(ragged(50)), 3.0), Source("b", corpus(ragged(500, 1), 10_000), 1.0), Source("c", corpus(ragged(20, 2), 90_000), 2.0)]
    feed = layout("stream", docs=sources, rows=2).feed
    for _ in range(3000):
        feed.next()
        shares = [u / w for u, w in zip(feed.used, (3, 1, 2), strict=True)]
        assert max(shares) - min(shares) <= 60  # one document
    made = layout("document", docs=sources, rows=2)
    batch = made.next()
    assert batch.sources == 3 and batch.chunk(0, CTX, 1.0, "cpu").weight.shape[0] == 3
    assert sum(batch.predicted_of) == batch.predicted == len(targets(batch))


def test_a_source_may_be_read_so_many_times():
    a, b = corpus([30] * 4), corpus([30] * 4, 1000)
    made = layout("stream", docs=[Source("a", a, 1.0, epochs=1.5), Source("b", b, 1.0, epochs=1.0)], rows=1, max_tokens=1000)
    batches = []
    while (batch := made.next()) is not None:
        batches.append(batch)
    times = np.bincount([t for batch in batches for t in targets(batch)], minlength=1200)
    assert times[predictable(b)].tolist() == [1] * 116
    assert sorted(times[predictable(a)].tolist()) == [1] * 58 + [2] * 58


def test_validation_reads_each_document_once_in_order():
    lanes = validation(DOCS, 2, CTX)
    batches = []
    while (batch := lanes.next()) is not None:
        batches.append(batch)
    assert sorted(t for b in batches for t in targets(b)) == predictable(DOCS)
    assert [s.start for s in batches[0].rows[0]][0] == 0


def test_a_row_longer_than_memory_is_never_held(tmp_path):
    path = tmp_path / "long.npy"
    np.lib.format.open_memmap(path, "w+", np.uint16, (2**25,)).flush()
    long = dataclasses.replace(corpus([2**25 // 2**20]), tokens=np.load(path, mmap_mode="r"), sizes=np.array([2**25]))
    made = layout("document", docs=long, rows=1)
    tracemalloc.start()
    batch = made.next()
    batch.rank(0, 1).chunk(3, 4096, batch.predicted, "cpu")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert batch.length == 2**25 - 1


def test_any_cut_of_a_batch_is_the_same_batch():
    rng = np.random.default_rng(0)
    tokens, predict, reset = rng.integers(0, 99, (3, 50)), rng.random((3, 49)) < 0.7, rng.random((3, 49)) < 0.1
    batch = Batch.of(tokens, predict, reset, carry=True)
    for ctx in (1, 5, 49, 100):
        chunks = [batch.chunk(i, ctx, 2.0, "cpu") for i in range(batch.chunks(ctx))]
        whole = {n: np.concatenate([getattr(c, n).numpy() for c in chunks], 1) for n in ("tokens", "targets", "weight", "reset")}
        assert (whole["tokens"] == tokens[:, :-1]).all() and (whole["reset"] == reset).all()
        assert (whole["weight"] == predict / 2).all()
        assert (whole["targets"][predict] == tokens[:, 1:][predict]).all()


@pytest.mark.parametrize(("kind", "message"), [("stream", "at most layout.rows="), ("fixed", "at least 1 samples"), ("official", "at least 3 samples")])
def test_too_little_data(kind, message):
    with pytest.raises(DataError, match=message):
        layout(kind, docs=corpus([20, 9]), ctx=64)


def test_pieces_of_documents():
    pieces = Pieces(DOCS, limit=20)
    starts, counts, last = pieces.spans(np.arange(len(pieces)))
    assert last.all() and counts.max() == 20
    assert sorted(t for s, n in zip(starts, counts, strict=True) for t in range(s + 1, s + n + 1)) == predictable(DOCS)
