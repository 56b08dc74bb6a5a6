"""The official recipe's numbers, and fp32 masters under bf16 weights."""

import pytest
import torch
from torch import nn

from rwkv.training.optimizer import Optimizer
from rwkv.training.schedule import learning_rate

# the learning rates the official trainer prints for its minipile run: 6e-4 to 6e-5, 10 steps of warm-up,
# 16 x 512 tokens a step, 1498226207 tokens, at the end of each 2520 steps
OFFICIAL = ".00059975 .00059899 .00059773 .00059597 .00059371 .00059096 .00058771 .00058399 .00057978 .00057511 .00056999 .00056441"


@pytest.mark.parametrize(("epoch", "want"), list(enumerate(OFFICIAL.split())))
def test_official_learning_rates(epoch, want):
    step = 2520 * (epoch + 1) - 1
    got = learning_rate("cosine", 6e-4, 0.1, 10, step, step * 8192, 8192, 1498226207)
    assert f"{got:.8f}"[1:] == want


def test_warm_up_and_end():
    assert learning_rate("cosine", 1.0, 0.1, 10, 0, 0, 100, 10**6) == pytest.approx(0.01)
    assert learning_rate("cosine", 1.0, 0.1, 10, 5, 500, 100, 10**6) == pytest.approx(0.505, abs=1e-3)
    assert learning_rate("cosine", 1.0, 0.1, 10, 10**5, 10**7, 100, 10**6) == pytest.approx(0.1)
    assert learning_rate("constant", 1.0, 0.1, 10, 10**5, 10**7, 100, 10**6) == 1.0


class Toy(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4))
        self.bias = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.idle = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, x):
        return (x @ self.weight.mT + self.bias).square().mean()


GROUPS = {"weight": (1.0, True), "bias": (2.0, False), "idle": (1.0, True)}


def make(dtype, **changes):
    model = Toy(dtype)
    settings = {"betas": (0.9, 0.99), "eps": 1e-18, "weight_decay": 0.1} | changes
    return model, Optimizer(model, GROUPS, **settings)


def test_equals_adamw_by_hand():
    model, optimizer = make(torch.float64)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.ones(2, 4, dtype=torch.float64)).backward()
    optimizer.step(0.01)
    # the first step of Adam is a step of lr against the gradient's sign, after the decay
    grad = 2 * start["weight"].sum(1) / 3
    torch.testing.assert_close(model.weight.detach(), start["weight"] * (1 - 0.01 * 0.1) - 0.01 * grad.sign()[:, None])
    torch.testing.assert_close(model.bias.detach(), -2 * 0.01 * grad.sign())
    assert torch.equal(model.idle, start["idle"])  # no gradient, no decay


def test_clip_returns_the_norm_before():
    model, optimizer = make(torch.float32)
    model(10 * torch.ones(2, 4)).backward()
    before = torch.cat([g.flatten() for g in optimizer.grads()]).norm()
    assert optimizer.clip(1.0) == pytest.approx(before.item())
    assert torch.cat([g.flatten() for g in optimizer.grads()]).norm().item() == pytest.approx(1.0, rel=1e-4)


def test_bf16_sums_thousands_of_small_gradients_and_steps_below_its_own_resolution():
    model, optimizer = make(torch.bfloat16, weight_decay=0.0)
    (model.bias.sum() * 1.0).backward()
    for _ in range(2000):
        (model.bias.sum() * 2**-10).backward()
    assert model.bias.grad is None
    torch.testing.assert_close(optimizer.masters["bias"].grad, torch.full((3,), 1 + 2000 / 1024))
    optimizer.zero_grad()
    start = model.weight.detach().clone()
    for _ in range(100):
        model(torch.ones(2, 4, dtype=torch.bfloat16)).backward()
        optimizer.step(1e-4)
    assert not torch.equal(model.weight, start)
    assert torch.equal(model.weight, optimizer.masters["weight"].bfloat16())


def test_state_goes_into_another_optimizer():
    x = torch.arange(8.0).view(2, 4)
    a, opt_a = make(torch.float32)
    for _ in range(3):
        a(x).backward()
        opt_a.step(0.01)
    b, opt_b = make(torch.float32)
    for name in opt_a.masters:
        opt_b.put(name, opt_a.entries(name))
    for model, optimizer in ((a, opt_a), (b, opt_b)):
        model(x).backward()
        optimizer.step(0.01)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
