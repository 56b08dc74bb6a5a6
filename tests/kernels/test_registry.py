"""Which backend runs an operation: the one that was asked for, by its own name or through the recurrence's."""

from dataclasses import replace

import pytest
import torch

from rwkv.bptt import layerwise
from rwkv.data.batch import Chunk
from rwkv.errors import KernelError
from rwkv.kernels import registry
from rwkv.kernels.registry import Backend, Kernels
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import GENERATIONS, RWKV
from rwkv.model.size import Size
from rwkv.model.state import State


def runs(monkeypatch, kernel, version, block_by_block=False) -> set[tuple[str, str]]:
    """(op, backend) of all that a gradient of a small model calls."""
    seen = set()
    for op, backends in registry._OPS.items():

        def spy(op, backend):
            def run(*args):
                seen.add((op, backend.name))
                return backend.run(*args)

            return Backend(backend.name, run, backend.can, backend.auto, backend.device)

        spies = {name: spy(op, backend) for name, backend in backends.items()}
        plain = backends.get("torch") or backends["reference"]
        monkeypatch.setitem(registry._OPS, op, spies | {"asked": spy(op, replace(plain, name="asked"))})  # the last, which is never taken unasked
    rank = None if version in ("v4", "v5") else GENERATIONS[version].default_rank(32)
    size = Size(2, 32, 50, rank, 16, version)
    model = LossModel(RWKV(size, Kernels.of(kernel, GENERATIONS[version].WKV)).init_weights(0))
    tokens = torch.randint(50, (2, 20))
    chunk = Chunk(tokens, tokens, torch.ones(2, 20, dtype=torch.float64), None)
    state = State.zeros(size, 2, torch.float32)
    if block_by_block:
        layerwise.backward(model, chunk, state, layerwise.forward(model, chunk, state)[1], None)
    else:
        loss, _ = model(tokens, state, None, tokens, chunk.weight)
        loss.backward()
    return seen


@pytest.mark.parametrize("block_by_block", [False, True])
@pytest.mark.parametrize("version", ["v4", "v5", "v6", "v7"])
def test_each_operation_runs_as_named(monkeypatch, version, block_by_block):
    wkv = GENERATIONS[version].WKV
    asked = dict.fromkeys(registry.ops_of(wkv), "asked")
    assert runs(monkeypatch, asked, version, block_by_block) == set(asked.items())


@pytest.mark.parametrize("op", ["cross_entropy_", "norm_mix"])
def test_the_others_are_chosen_as_ever(monkeypatch, op):
    auto = runs(monkeypatch, "auto", "v7")
    assert runs(monkeypatch, {op: "asked"}, "v7") == {(o, "asked" if o == op else b) for o, b in auto}


def test_one_name_is_the_recurrence_s(monkeypatch):
    auto = runs(monkeypatch, "auto", "v6")
    assert runs(monkeypatch, "chunked", "v6") == {(o, "chunked" if o == "wkv6" else b) for o, b in auto}


def test_operations_of_each_generation():
    around = ["norm_mix", "relu_squared", "cross_entropy_"]
    assert registry.ops_of("wkv5") == ["wkv5", *around]
    assert set(registry.ops_of("wkv7")) == {"wkv7", "wkv7_inputs", "wkv7_readout", *around}
    with pytest.raises(KernelError, match=r"model\.kernel\.wkv7_inputs=torch: the model has no such operation; it has wkv6, norm_mix"):
        Kernels.of({"norm_mix": "torch", "wkv7_inputs": "torch"}, "wkv6")
