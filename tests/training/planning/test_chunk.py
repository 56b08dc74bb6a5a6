"""What is counted in a dry run is what a real run holds."""

import pytest
import torch

from rwkv.config.compose import load
from rwkv.kernels import dry
from rwkv.kernels.registry import Kernels
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import GENERATIONS, RWKV
from rwkv.model.size import Size
from rwkv.model.state import DTYPES, State
from rwkv.training.planning import chunk
from rwkv.training.planning.live import Live
from rwkv.training.planning.work import Work

ROWS, TOKENS, VOCAB = 2, 48, 300


def size_of(version: str, layers: int = 5, width: int = 128) -> Size:
    return Size(layers, width, VOCAB, GENERATIONS[version].default_rank(width), 64, version)


@pytest.mark.parametrize("weights, residual", [("fp32", None), ("bf16", None), ("bf16", "fp32")])
@pytest.mark.parametrize("version", GENERATIONS)
def test_counted_as_held(version, weights, residual):
    """Of real tensors on the CPU, five layers, counted as they come and go; the plan has run two and three without any."""
    size, dtype = size_of(version), DTYPES[weights]
    rwkv = RWKV(size, residual=DTYPES.get(residual)).init_weights(1).to(dtype)
    ids, reset = torch.zeros(ROWS, TOKENS, dtype=torch.long), torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    state = State.zeros(size, ROWS, dtype).leaf()
    with Live() as live:
        outputs = rwkv(ids, state, reset)
        held = live.mark()
    del outputs
    assert chunk.chunk_bytes(size, ROWS, TOKENS, weights, "cpu", residual=residual).kept == pytest.approx(held, rel=2e-3)


def test_logits_counted_as_held():
    size = size_of("v7")
    model = LossModel(RWKV(size).init_weights(1))
    hidden = torch.randn(ROWS, TOKENS, size.n_embd, requires_grad=True)
    targets, weight = torch.zeros(ROWS, TOKENS, dtype=torch.long), torch.ones(ROWS, TOKENS)
    model.rwkv.head.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with Live() as live:
        model.loss(hidden, targets, weight).backward()
    assert chunk.chunk_bytes(size, ROWS, TOKENS, "fp32", "cpu").logits == pytest.approx(live.peak, rel=2e-3)


@pytest.mark.parametrize("version", ["v4", "v6", "v7"])
def test_a_gpu_is_planned_for_without_one(version):
    size = size_of(version)
    found = chunk.chunk_bytes(size, ROWS, TOKENS, "bf16", "cuda")
    assert found.kept > found.inputs > 0 and found.kept > 4 * found.by_block and found.backward > 0
    assert not dry.running()


def test_the_kernels_asked_for_are_those_counted():
    found = [chunk.chunk_bytes(size_of("v7"), ROWS, TOKENS, "bf16", "cuda", Kernels.of(k, "wkv7")) for k in ({}, dict.fromkeys(("norm_mix", "cross_entropy_"), "torch"))]
    assert found[1].logits > found[0].logits and found[1].kept > found[0].kept
    cfg = load(["model.kernel.norm_mix=torch", "model.kernel.wkv7=chunked"])
    assert Work.of(cfg, size_of("v7")).kernels == Kernels((("norm_mix", "torch"), ("wkv7", "chunked")))


def test_bytes_grow_with_tokens():
    """Also where a dry run of all of them would take too long."""
    size = size_of("v4", 2, 64)
    one, two = (chunk.chunk_bytes(size, 1, n, "fp32", "cuda").kept for n in (768, 1536))
    assert two == pytest.approx(2 * one, rel=0.02)


def test_live_counts_storages_once():
    with Live() as live:
        x = torch.zeros(100)
        y = x.view(10, 10).t()
        assert live.now == 400
        z = y + 1
        assert live.mark() == 800
        del z
        assert (live.now, live.peak) == (400, 800)
        del x, y
        assert live.now == 0
