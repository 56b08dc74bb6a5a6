"""The chunked cross-entropy against PyTorch's, and the official regulariser."""

import pytest
import torch
import torch.nn.functional as F

from rwkv.model import loss as loss_module
from rwkv.model.loss import linear_cross_entropy


def inputs(n=23, C=16, V=101, dtype=torch.float64):
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, C, generator=gen).to(dtype).requires_grad_()
    head = torch.randn(V, C, generator=gen).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (n,), generator=gen)
    weight = torch.rand(n, generator=gen, dtype=torch.float64) * (torch.rand(n, generator=gen) < 0.7)
    return hidden, head, targets, weight


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_equals_cross_entropy(rows, monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 101 * rows)
    hidden, head, targets, weight = inputs()
    want = (F.cross_entropy(hidden @ head.mT, targets, reduction="none") * weight).sum()
    expected = torch.autograd.grad(want, (hidden, head))
    got = linear_cross_entropy(hidden, head, targets, weight)
    grads = torch.autograd.grad(3 * got, (hidden, head))
    torch.testing.assert_close(got, want)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, 3 * b)


def test_l2wrap_is_the_gradient_of_the_largest_logits_square():
    hidden, head, targets, weight = inputs()
    logits = hidden @ head.mT
    plain = (F.cross_entropy(logits, targets, reduction="none") * weight).sum()
    penalty = 0.5e-4 * (weight * logits.max(1).values.square()).sum()
    expected = torch.autograd.grad(plain + penalty, (hidden, head))
    got = linear_cross_entropy(hidden, head, targets, weight, l2wrap=1e-4)
    torch.testing.assert_close(got, plain)  # the value is without it
    for a, b in zip(torch.autograd.grad(got, (hidden, head)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_bf16_is_summed_in_fp32():
    hidden, head, targets, weight = inputs(dtype=torch.bfloat16)
    got = linear_cross_entropy(hidden, head, targets, weight)
    want = (F.cross_entropy((hidden @ head.mT).float(), targets, reduction="none") * weight).sum()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)
    got.backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_no_gradient_is_formed_where_none_is_wanted():
    hidden, head, targets, weight = inputs()
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, head, targets, weight).requires_grad
