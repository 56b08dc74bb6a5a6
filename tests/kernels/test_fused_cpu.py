"""The compiled operations around the recurrence against PyTorch in fp64."""

import pytest
import torch

from rwkv.kernels import registry
from rwkv.kernels.fused import cpu, cross_entropy_, relu_squared

built = pytest.mark.skipif(cpu.why_not(torch.empty(1)) is not None, reason="no C++ compiler here")
torch.set_num_threads(1)


def distance(got, want):
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


@built
@pytest.mark.parametrize("vocab", [1, 3, 16, 17, 256, 4099, 65536])
@pytest.mark.parametrize("l2wrap", [0.0, 1e-2])
def test_cross_entropy(vocab, l2wrap):
    gen = torch.Generator().manual_seed(vocab)
    logits, targets = torch.randn(19, vocab, generator=gen) * 5, torch.randint(vocab, (19,), generator=gen)
    scale = torch.rand(19, generator=gen)
    leaf = logits.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    (want @ scale.double()).backward()
    grad = leaf.grad
    top, where = leaf.detach().max(1)
    grad[torch.arange(19), where] += l2wrap * scale.double() * top
    untouched = logits.clone()
    assert distance(cross_entropy_(untouched, targets, scale, l2wrap, False, backend="cpu"), want.detach()) < 1e-6
    assert torch.equal(untouched, logits)
    for backend, bound in (("cpu", 2e-7), ("torch", 1e-6)):
        out = logits.clone()
        assert distance(cross_entropy_(out, targets, scale, l2wrap, True, backend=backend), want.detach()) < 1e-6
        assert distance(out, grad) < bound


@built
def test_cross_entropy_of_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0], [float("-inf"), 0.0, 0.0], [float("nan"), 0.0, 0.0]])
    losses = cross_entropy_(logits, torch.tensor([1, 1, 1]), torch.ones(3), 0.0, True, backend="cpu")
    assert losses[0] == 2e4 and torch.isclose(losses[1], torch.tensor(2.0).log()) and losses[2].isnan()
    assert logits[0].tolist() == [1.0, -1.0, 0.0] and logits[1].tolist() == [0.0, -0.5, 0.5] and logits[2].isnan().any()


@built
def test_a_target_outside_the_vocabulary_is_refused():
    for target in (-1, 5):
        with pytest.raises(IndexError, match=r"0 \.\. 4"):
            cross_entropy_(torch.zeros(1, 5), torch.tensor([target]), torch.ones(1), 0.0, True, backend="cpu")


@built
def test_threads_do_not_change_a_bit():
    logits, x, out = torch.randn(50, 1000), torch.randn(200_003), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        grad = logits.clone()
        out.append((cross_entropy_(grad, torch.zeros(50, dtype=torch.long), torch.ones(50), 0.0, True, backend="cpu"), grad, relu_squared(x, backend="cpu")))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


@built
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 64), (70_001,)])
def test_relu_squared(shape):
    x, dy = torch.randn(shape).requires_grad_(), torch.randn(shape)
    y = relu_squared(x, backend="cpu")
    (dx,) = torch.autograd.grad(y, x, dy)
    want = relu_squared(x, backend="torch")
    assert torch.equal(y, want)
    torch.testing.assert_close(dx, torch.autograd.grad(want, x, dy)[0])
    strided = torch.randn(6, 10)[:, ::2]
    assert torch.equal(relu_squared(strided, backend="cpu"), relu_squared(strided, backend="torch"))
    assert relu_squared(torch.tensor([float("nan")]), backend="cpu").isnan()


@built
def test_auto_takes_them_for_fp32():
    for op in ("relu_squared", "cross_entropy_"):
        assert registry.chosen(op, "auto", torch.empty(2, 2)) == "cpu"
        assert registry.chosen(op, "auto", torch.empty(2, 2, dtype=torch.float64)) == "torch"
