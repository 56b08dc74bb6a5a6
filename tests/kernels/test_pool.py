"""Pooled CPU memory: a block comes back when the last tensor over it dies, and not before."""

import io

import torch

from rwkv.kernels import pool

SHAPE = 3, 700, 1000  # larger than pool.SMALLEST


def test_a_block_is_used_again_once_nothing_looks_at_it():
    x = pool.empty(*SHAPE).fill_(1)
    address, view = x.data_ptr(), x[1:, ::2]
    del x
    other = pool.empty(*SHAPE).fill_(2)
    assert other.data_ptr() != address and view.eq(1).all()
    del view
    assert pool.empty(*SHAPE).data_ptr() == address


def test_pooled_tensors_are_ordinary_ones():
    x = pool.empty(*SHAPE).normal_().requires_grad_()
    (x * x).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach()) and x.is_contiguous() and x.dtype == torch.float32
    file = io.BytesIO()
    torch.save(x.detach(), file)
    assert torch.equal(torch.load(io.BytesIO(file.getvalue())), x)


def test_free_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(pool, "_free", {})
    monkeypatch.setattr(pool, "_free_bytes", 0)
    monkeypatch.setattr(pool, "KEPT", 10 << 20)
    live = [pool.empty(1 << 20) for _ in range(4)]
    del live
    assert pool._free_bytes == 8 << 20 and sum(len(b) * size for size, b in pool._free.items()) == 8 << 20


def test_small_ones_are_left_to_malloc():
    before = pool._free_bytes
    pool.empty(10, 10)
    assert pool._free_bytes == before
