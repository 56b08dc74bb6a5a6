"""Exact BPTT on a CUDA device: states in every place, copies that overlap compute, memory that stays where it is."""

import copy

import pytest
import torch

from rwkv.bptt.chunks import Eager, Graphed
from rwkv.bptt.engine import Settings, gradient
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import RWKV
from rwkv.model.size import LoraRank, Size
from rwkv.model.state import State
from tests.bptt.test_engine import grads, make_batch, make_model, make_state, whole, worst

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("way", ["plain", "recompute", "selective", "graphs"])
@pytest.mark.parametrize("states", ["device", "host", "disk", "sqrt", "auto"])
def test_equals_one_backward_on_the_cpu(states, way, tmp_path):
    model, batch = make_model(), make_batch(length=400)
    state = make_state(model)
    loss, want, end, d_state = whole(model, batch, state)
    model.zero_grad()
    gpu = copy.deepcopy(model).cuda()
    settings = Settings(8, None, states, tmp_path, way == "recompute")
    runs = Graphed(gpu, after=2) if way == "graphs" else Eager(gpu, way == "selective")
    got = gradient(runs, batch, state.map(torch.Tensor.cuda), settings, batch.predicted, want_state_grad=True)
    assert worst({n: g.cpu() for n, g in grads(gpu).items()}, want) < 1e-11
    assert abs(got.loss.cpu() - loss) < 1e-11
    torch.testing.assert_close(got.final.wkv.cpu(), end.wkv, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(got.d_state.wkv.cpu(), d_state[1], rtol=1e-9, atol=1e-11)
    if way == "graphs":
        assert len(runs.graphs) == 2 and runs.able


def big(dtype):
    """States of 12 MB and short chunks, so that a copy that nobody waits for is still under way when it is read."""
    size = Size(4, 1024, 300, LoraRank(16, 16, 16, 16))
    model = RWKV(size).init_weights(0)
    gen = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=gen)
    model = LossModel(model.to("cuda", dtype))
    return model, State.zeros(size, 12, dtype, "cuda")


@pytest.mark.parametrize("way", ["plain", "recompute", "graphs"])
def test_host_states_are_complete_when_read(way):
    model, state = big(torch.float32)
    batch = make_batch(rows=12, length=16 * 40 + 5, resets=False)
    found = {}
    for kind in ("device", "host"):
        model.zero_grad()
        runs = Graphed(model, after=2) if way == "graphs" else Eager(model)
        done = gradient(runs, batch, state, Settings(16, None, kind, recompute=way == "recompute"), batch.predicted, want_state_grad=True)
        found[kind] = {**grads(model), "state": done.d_state.wkv}
    assert worst(found["host"], found["device"]) < 1e-6


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_is_flat(recompute):
    model, state = big(torch.bfloat16)
    peak = {}
    for chunks in (4, 8, 64):  # the first settles what libraries keep
        batch = make_batch(rows=12, length=64 * chunks, resets=False)
        settings = Settings(64, None, "host", recompute=recompute, keep_chunks=0)
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        gradient(model, batch, state, settings, batch.predicted)
        peak[chunks] = torch.cuda.max_memory_allocated()
    assert abs(peak[64] - peak[8]) < 2**20


@pytest.mark.parametrize("graphs", [False, True])
def test_selective_recomputation_changes_no_bit_and_takes_less_memory(graphs):
    found, peak = {}, {}
    for selective in (False, True):
        model, state = big(torch.bfloat16)
        runs = Graphed(model, selective, after=2) if graphs else Eager(model, selective)
        batch = make_batch(rows=12, length=256 * 6, resets=False)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(runs, batch, state, Settings(256, None, "host"), batch.predicted)
        found[selective], peak[selective] = grads(model), torch.cuda.max_memory_allocated() - before
    assert all(torch.equal(g, found[False][n]) for n, g in found[True].items())
    assert peak[True] < 0.8 * peak[False], peak
