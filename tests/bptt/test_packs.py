"""A row of several documents gives what the documents give alone: the same loss, the same gradients."""

import numpy as np
import pytest
import torch

from rwkv.bptt.engine import Settings, gradient
from rwkv.data.batch import Batch, Segment
from rwkv.data.corpus import Corpus
from rwkv.model.state import State
from tests.bptt.test_engine import SIZE, grads, make_model

SIZES = [12, 40, 7, 25]


def corpus(masked: bool) -> Corpus:
    rng = np.random.default_rng(0)
    sizes = np.array(SIZES)
    tokens = rng.integers(1, SIZE.vocab_size, sizes.sum()).astype(np.uint16)
    return Corpus(tokens, np.cumsum(sizes) - sizes, sizes, rng.random(sizes.sum()) < 0.6 if masked else None)


def row(c: Corpus, numbers: list[int], joined: bool = False) -> list[Segment]:
    out, at = [], 0
    for i in numbers:
        count = int(c.sizes[i]) - (not joined)
        out.append(Segment(c, int(c.starts[i]), count, at, True, not joined))
        at += count
    return out


def loss_and_grads(model, batch: Batch, denominator: float):
    model.zero_grad()
    state = State.zeros(SIZE, len(batch.rows), torch.float64)
    done = gradient(model, batch, state, Settings(16), denominator)
    return done.loss.item(), grads(model)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_a_pack_equals_its_documents_alone(masked, joined):
    model, c = make_model(), corpus(masked)
    packed = Batch([row(c, [0, 1], joined), row(c, [3, 2], joined)], 51 if not joined else 52, carry=False)
    loss, got = loss_and_grads(model, packed, packed.predicted)
    losses, want = [], {}
    for i in range(len(SIZES)):
        alone = Batch([row(c, [i])], SIZES[i] - 1, carry=False)
        part, grad = loss_and_grads(model, alone, packed.predicted)
        losses.append(part)
        want = {n: g + want.get(n, 0) for n, g in grad.items()}
    assert loss == pytest.approx(sum(losses), rel=1e-12)
    for name, w in want.items():
        assert (got[name] - w).norm() <= 1e-11 * w.norm(), name


def test_losses_of_sources_are_told_apart_and_their_gradient_is_that_of_the_sum():
    model, c = make_model(), corpus(False)
    rows = [row(c, [0, 1]), [s._replace(source=1) for s in row(c, [3, 2])]]
    together, apart = Batch(rows, 51, False), Batch(rows, 51, False, sources=2)
    with pytest.raises(IndexError):
        together.predicted_of  # noqa: B018
    together = Batch([rows[0], row(c, [3, 2])], 51, False)
    model.zero_grad()
    state = State.zeros(SIZE, 2, torch.float64)
    both = gradient(model, apart, state, Settings(16), apart.predicted)
    got = grads(model)
    loss, want = loss_and_grads(model, together, together.predicted)
    assert both.loss.shape == (2,) and both.loss.sum().item() == pytest.approx(loss, rel=1e-12)
    alone = loss_and_grads(model, Batch([rows[0]], 51, False), apart.predicted)[0]
    assert both.loss[0].item() == pytest.approx(alone, rel=1e-12)
    for name, w in want.items():
        assert (got[name] - w).norm() <= 1e-12 * w.norm(), name
