"""precision=bf16-mixed: bf16 weights and products, what passes from block to block in fp32."""

import statistics

import pytest
import torch

from rwkv.config.compose import load
from rwkv.config.derived import model_of, size_of
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import GENERATIONS, RWKV
from rwkv.model.size import Size
from rwkv.model.state import DTYPES, State

ROWS, TOKENS = 2, 64


def results(size: Size, weights: dict, precision: str) -> list[torch.Tensor]:
    """Gradients by parameter, and the state."""
    cfg = load([f"precision={precision}"])
    dtype = DTYPES[cfg.precision.weights]
    model = model_of(cfg, size).to(dtype)
    model.load_state_dict({n: x.to(dtype) for n, x in weights.items()})
    tokens = torch.randint(1, size.vocab_size, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    weight = torch.full((ROWS, TOKENS), 1 / (ROWS * TOKENS), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    loss, end = LossModel(model)(tokens[:, :-1], State.zeros(size, ROWS, dtype), None, tokens[:, 1:], weight)
    loss.backward()
    assert end.shift.dtype == dtype and all(p.grad is None or p.grad.dtype == dtype for p in model.parameters())
    return [x.double() for x in (*(p.grad for p in model.parameters() if p.grad is not None), end.wkv)]


def errors(found: list[torch.Tensor], want: list[torch.Tensor]) -> tuple[float, float]:
    """Of the median gradient, and of the state."""
    *each, state = (((x - y).norm() / y.norm()).item() for x, y in zip(found, want, strict=True) if y.norm())
    return statistics.median(each), state


@pytest.mark.parametrize("version", GENERATIONS)
def test_its_errors_are_smaller_than_those_of_bf16(version):
    size = size_of(load([f"arch={version}", "model.n_layer=6", "model.n_embd=64"]), 257, None)
    model, noise = RWKV(size).init_weights(0), torch.Generator().manual_seed(3)
    weights = {n: (p.detach() + 0.05 * torch.randn(p.shape, generator=noise)).bfloat16() for n, p in model.named_parameters()}
    want = results(size, weights, "fp64")
    bf16, mixed = (errors(results(size, weights, precision), want) for precision in ("bf16", "bf16-mixed"))
    assert mixed[0] < 0.03 and mixed[1] < 0.97 * bf16[1] < 0.01, (bf16, mixed)
