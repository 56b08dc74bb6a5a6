"""Drawing tokens: the distribution asked for, at any temperature."""

import pytest
import torch

from rwkv.model.sampling import generate, pick

LOGITS = torch.tensor([1.0, 3.0, 2.0, -50.0, 2.5])


def drawn(n=4000, **settings):
    generator = torch.Generator().manual_seed(0)
    return torch.bincount(torch.tensor([pick(LOGITS, generator=generator, **settings) for _ in range(n)]), minlength=5) / n


@pytest.mark.parametrize("temperature", [1e-320, 1e-3, 1e-2])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_cold_is_the_most_likely(temperature, top_p):
    """Also where every probability is small: none of 60,000 equal ones survives the power 1000."""
    assert drawn(20, temperature=temperature, top_p=top_p)[1] == 1
    flat = torch.zeros(60_000)
    flat[7] = 1.0
    assert pick(flat, temperature, top_p, torch.Generator().manual_seed(0)) == 7


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_scales_the_logits(temperature):
    want = torch.softmax(LOGITS / temperature, -1)
    assert (drawn(temperature=temperature, top_p=1.0) - want).abs().max() < 0.03


def test_temperature_acts_among_the_most_likely():
    """top_p is measured before the temperature, as the official demo does."""
    probs = torch.softmax(LOGITS, -1)
    kept = probs.sort(descending=True).indices[:2]
    got = drawn(temperature=2.0, top_p=float(probs[kept[0]]) + 0.01)
    assert set(got.nonzero().flatten().tolist()) == set(kept.tolist())
    want = torch.softmax(LOGITS[kept] / 2, -1)
    assert (got[kept] - want).abs().max() < 0.03


def test_top_k():
    got = drawn(temperature=1.0, top_p=1.0, top_k=2)
    assert set(got.nonzero().flatten().tolist()) == {1, 4}


class Constant:
    """A model whose logits are always LOGITS."""

    emb = torch.nn.Embedding(5, 1)

    def __call__(self, tokens, state):
        return torch.zeros(1, tokens.shape[1], 1), state

    def logits(self, hidden):
        return LOGITS.clone()


def test_penalties():
    """presence is taken off once, frequency for each time: with 0.6 and 0.3 greedy drawing goes 3.0, 2.5, 2.1 ..."""
    def greedy(**penalties):
        return list(generate(Constant(), [0], tokens=6, temperature=0, top_p=1.0, seed=0, stop=None, **penalties))

    assert greedy() == [1] * 6
    assert greedy(presence=0.6) == [1, 4, 1, 1, 1, 1]  # 3.0 - 0.6 = 2.4 < 2.5, then 2.5 - 0.6 < 2.4
    assert greedy(frequency=0.3) == [1, 1, 4, 1, 4, 1]
