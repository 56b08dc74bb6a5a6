"""Exact BPTT against one backward over the whole document."""

import os
import resource

import numpy as np
import pytest
import torch

from rwkv.bptt.chunks import Eager
from rwkv.bptt.engine import Bptt, Settings, gradient
from rwkv.bptt.states import Buffers
from rwkv.data.batch import Batch
from rwkv.errors import ConfigError
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import RWKV
from rwkv.model.size import LoraRank, Size
from rwkv.model.state import State

SIZE = Size(2, 32, 50, LoraRank(8, 8, 8, 8), head_size=16)


def make_model(dtype=torch.float64, seed=0):
    """Random everywhere: at the official initialisation many gradients are zero."""
    model = RWKV(SIZE).init_weights(seed)
    gen = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen)
    return LossModel(model.to(dtype))


def make_batch(rows=2, length=100, seed=0, resets=True):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SIZE.vocab_size, (rows, length + 1)).astype(np.uint16)
    predict = rng.random((rows, length)) < 0.9
    predict[-1, length // 2 :] = False
    return Batch.of(tokens, predict, rng.random((rows, length)) < 0.03 if resets else None, carry=True)


def make_state(model, rows=2, seed=1):
    gen = torch.Generator().manual_seed(seed)
    zero = State.zeros(SIZE, rows, model.rwkv.emb.weight.dtype)
    return zero.map(lambda x: torch.randn(x.shape, generator=gen).to(x.dtype))


def whole(model, batch, state):
    """Loss, gradients and final state from a single graph over all tokens."""
    chunk = batch.chunk(0, batch.length, batch.predicted, "cpu")
    start = state.leaf()
    model.zero_grad()
    loss, end = model(chunk.tokens, start, chunk.reset, chunk.targets, chunk.weight)
    loss.backward()
    return loss.detach(), grads(model), end, [x.grad for x in start.tensors()]


def grads(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def worst(got, want):
    assert got.keys() == want.keys()
    return torch.stack([(got[n] - want[n]).norm() / want[n].norm().clamp_min(1e-30) for n in want]).max().item()  # NaN if one is


@pytest.mark.parametrize("ctx_len", [1, 7, 16, 33, 100, 1000])
@pytest.mark.parametrize("states", ["device", "host", "disk", "sqrt"])
def test_equals_one_backward(ctx_len, states, tmp_path):
    model, batch = make_model(), make_batch()
    state = make_state(model)
    loss, want, end, d_state = whole(model, batch, state)
    model.zero_grad()
    got = gradient(model, batch, state, Settings(ctx_len, None, states, tmp_path), batch.predicted, want_state_grad=True)
    assert worst(grads(model), want) < 1e-12
    assert abs(got.loss - loss) < 1e-12
    for a, b in zip((*got.final.tensors(), *got.d_state.tensors()), (*end.tensors(), *d_state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_states_on_disk_leave_nothing_there(tmp_path):
    """Not even while they are in use, so that a killed process leaves nothing either."""
    tensors = [torch.randn(2, 3), torch.randn(4).bfloat16()]
    buffers = Buffers(5, tensors, "disk", tmp_path)
    assert os.listdir(tmp_path) == []
    buffers.put(3, tensors)
    assert all(torch.equal(a, b) for a, b in zip(buffers.get(3), tensors, strict=True)) and not buffers.get(2)[0].any()


def test_states_on_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ConfigError, match=rf"bptt\.states=disk: {tmp_path} has no room for 8\.19 kB of states: .*bptt\.states=sqrt"):
            Buffers(8, [torch.zeros(256)], "disk", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-1)])
def test_lower_precisions(dtype, bound):
    model, batch = make_model(dtype), make_batch()
    state = make_state(model)
    _, want, _, _ = whole(model, batch, state)
    model.zero_grad()
    gradient(model, batch, state, Settings(16), batch.predicted)
    assert worst(grads(model), want) < bound


@pytest.mark.parametrize("keep_chunks", [None, 0, 2])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_activation_checkpointing_in_windows(keep_chunks, window):
    """Block by block, whether what entered the blocks was kept in pass 1 or is computed again."""
    plain, batch = make_model(torch.float32), make_batch()
    state = make_state(plain)
    want = gradient(plain, batch, state, Settings(16, window), batch.predicted, want_state_grad=True)
    model = make_model(torch.float32)
    settings = Settings(16, window, recompute=True, keep_chunks=keep_chunks)
    got = gradient(model, batch, state, settings, batch.predicted, want_state_grad=True)
    assert got.loss == want.loss and torch.equal(got.final.wkv, want.final.wkv)
    assert worst(grads(model), grads(plain)) < 1e-6  # sums of two gradients come in another order
    torch.testing.assert_close(got.d_state.wkv, want.d_state.wkv, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_equals_one_backward():
    model, batch = make_model(), make_batch()
    state = make_state(model)
    _, want, _, d_state = whole(model, batch, state)
    model.zero_grad()
    got = gradient(model, batch, state, Settings(16, recompute=True), batch.predicted, want_state_grad=True)
    assert worst(grads(model), want) < 1e-12
    torch.testing.assert_close(got.d_state.wkv, d_state[1], rtol=1e-10, atol=1e-12)


def test_selective_recomputation_changes_no_bit():
    batch, plain = make_batch(), make_model(torch.float32)
    state = make_state(plain)
    gradient(plain, batch, state, Settings(16), batch.predicted)
    model = make_model(torch.float32)
    gradient(Eager(model, selective=True), batch, state, Settings(16), batch.predicted)
    assert all(torch.equal(g, grads(plain)[n]) for n, g in grads(model).items())


def test_truncated_differs_and_its_loss_does_not():
    model, batch = make_model(), make_batch(resets=False)
    state = make_state(model)
    loss, want, _, _ = whole(model, batch, state)
    errors = []
    for depth in (1, 2, 4, 7):
        model.zero_grad()
        got = gradient(model, batch, state, Settings(16, depth), batch.predicted)
        assert abs(got.loss - loss) < 1e-12
        errors.append(worst(grads(model), want))
    assert errors[0] > 1e-3 and errors[-1] < 1e-12  # 7 chunks of 16 hold all 100 tokens


@pytest.mark.parametrize("saver", ["device", "host", "disk", "sqrt"])
@pytest.mark.parametrize("taker", ["device", "host", "disk", "sqrt"])
def test_taken_up_with_states_kept_elsewhere(saver, taker, tmp_path):
    """Where states are kept is no part of a run's settings, and `auto` may choose otherwise the next time."""
    model, batch = make_model(), make_batch()
    state = make_state(model)
    _, want, _, _ = whole(model, batch, state)
    for stop in (3, 10, 20):
        first = make_model()
        bptt = Bptt(first, batch, state, Settings(8, None, saver, tmp_path), batch.predicted)
        for _ in range(stop):
            bptt.advance()
        second = make_model()
        for name, p in second.named_parameters():
            p.grad = grads(first).get(name)
        again = Bptt(second, batch, state, Settings(8, None, taker, tmp_path), batch.predicted)
        again.load_state_dict(bptt.state_dict())
        while not again.done:
            again.advance()
        assert worst(grads(second), want) < 1e-12


@pytest.mark.parametrize("states", ["device", "sqrt"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_taken_up_by_another_process_at_any_chunk(states, window, recompute):
    """Bit-equal to the uninterrupted pass, wherever it stops."""
    settings = Settings(16, window, states, recompute=recompute)
    model, batch = make_model(torch.float32), make_batch()
    state = make_state(model)
    whole_pass = gradient(model, batch, state, settings, batch.predicted)
    want = grads(model)
    for stop in range(1, whole_pass.total):
        first = make_model(torch.float32)
        bptt = Bptt(first, batch, state, settings, batch.predicted)
        for _ in range(stop):
            bptt.advance()
        saved, partial = bptt.state_dict(), grads(first)
        second = make_model(torch.float32)
        for name, p in second.named_parameters():
            p.grad = partial.get(name)
        again = Bptt(second, batch, state, settings, batch.predicted)
        again.load_state_dict(saved)
        while not again.done:
            again.advance()
        assert again.work == whole_pass.total
        assert torch.equal(again.loss, whole_pass.loss)
        assert all(torch.equal(g, want[n]) for n, g in grads(second).items())
        assert torch.equal(again.final.wkv, whole_pass.final.wkv)
