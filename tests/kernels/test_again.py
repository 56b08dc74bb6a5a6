"""What is computed again rather than kept: how often, and that nothing else is mistaken for it."""

import torch

from rwkv.kernels import again


def through(x, w, calls, nested=False):
    """A gradient by way of an offered output that two operations save."""

    def run(x):
        calls.append("exp")
        return [x.exp()]

    def run_next(z):
        calls.append("sin")
        return [z.sin()]

    with again.selective():
        z = x.exp()
        again.offer([z], run, x)
        out = z * w + z * w
        if nested:
            s = z.sin()
            again.offer([s], run_next, z)
            out = out + s * w
        again.forget()
        del z
    out.sum().backward()
    return x.grad


def leaf(n=5):
    return torch.linspace(0.1, 1, n, dtype=torch.float64).requires_grad_(), torch.full((n,), 2.0, dtype=torch.float64, requires_grad=True)


def test_computed_once_for_all_who_ask():
    calls, (x, w) = [], leaf()
    got = through(x, w, calls)
    assert calls == ["exp"]
    torch.testing.assert_close(got, 4 * x.detach().exp(), rtol=0, atol=0)
    torch.testing.assert_close(w.grad, 2 * x.detach().exp(), rtol=0, atol=0)


def test_out_of_what_is_itself_computed_again():
    calls, (x, w) = [], leaf()
    got, z = through(x, w, calls, nested=True), x.detach().exp()
    assert sorted(calls) in (["exp", "sin"], ["exp", "exp", "sin"])
    torch.testing.assert_close(got, 4 * z + 2 * z.cos() * z)


def test_nothing_outside():
    x, w = leaf()
    again.offer([x.exp()], lambda x: 1 / 0, x)
    with again.selective():
        with torch.no_grad():
            z = x.exp()
            again.offer([z], lambda x: 1 / 0, x)
        (z * w).sum().backward()
        y = x.exp()
        again.offer([y], lambda x: 1 / 0, x)
        again.forget()
        (y * w).sum().backward()
    assert not again.selecting()


def test_another_tensor_at_the_same_place_is_kept():
    """An offered tensor stays until `forget`, so that what is made meanwhile cannot be taken for it."""
    x, w = leaf(2**20)
    with again.selective():
        again.offer([x.exp()], lambda x: 1 / 0, x)
        (x.cos() * w).sum().backward()
    torch.testing.assert_close(w.grad, x.detach().cos())
