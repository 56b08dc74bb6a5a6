"""The certificate that a gradient is exact: chunked against one backward over the whole document, group by group."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv.bptt.chunks import Eager
from rwkv.bptt.engine import Settings, gradient
from rwkv.data.batch import Batch
from rwkv.model.loss import LossModel
from rwkv.model.state import State

# relative error of the whole gradient that rounding alone explains
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}
GROUP_SLACK = 10  # a single group may be off by more than the whole, whose error its small norm does not carry


@dataclass(frozen=True)
class Certificate:
    """Errors ||chunked - whole|| / ||whole|| of one length.

    length, chunks: tokens of the document, and the chunks it was cut into.
    total: over all parameters at once; groups: of each kind of parameter over all layers, and of the initial state.
    """

    length: int
    chunks: int
    total: float
    groups: dict[str, float]
    bound: float

    @property
    def passed(self) -> bool:
        """Whether all is within bounds; a gradient that is zero as a whole proves nothing, its error is infinite."""
        return self.total <= self.bound and max(self.groups.values()) <= GROUP_SLACK * self.bound


def certify(
    model: LossModel | Eager,
    collect: Callable[[], dict[str, Tensor]],
    state: State,
    settings: Settings,
    length: int,
    vocab_size: int,
    bound: float,
    seed: int = 0,
) -> Certificate:
    """Compare the gradient of a random document under `settings` with the one in a single chunk.

    Args:
        collect: returns the parameter gradients by name and clears them.
        state: initial state of the rows; of random values, so that its own gradient counts.
    """
    rng = np.random.default_rng(seed)
    rows = len(state.wkv)
    tokens = rng.integers(0, vocab_size, (rows, length + 1)).astype(np.uint32)
    batch = Batch.of(tokens, carry=True)

    def grads(with_settings: Settings) -> dict[str, Tensor]:
        collect()
        done = gradient(model, batch, state, with_settings, batch.predicted, want_state_grad=True)
        return collect() | {"initial state, wkv": done.d_state.wkv, "initial state, shift": done.d_state.shift}

    whole = grads(Settings(length))
    chunked = grads(settings)
    difference = {n: (chunked[n].double() - whole[n].double()).norm().item() for n in whole}
    norm = {n: whole[n].double().norm().item() for n in whole}
    groups: dict[str, list[str]] = {}
    for name in whole:
        groups.setdefault(kind(name), []).append(name)
    return Certificate(
        length,
        batch.chunks(settings.ctx_len),
        ratio(difference, norm, list(whole)) if any(norm.values()) else float("inf"),
        {group: ratio(difference, norm, names) for group, names in groups.items()},
        bound,
    )


def kind(name: str) -> str:
    """blocks.3.att.w0 -> att.w0: the same parameter of all layers."""
    parts = name.split(".")
    return ".".join(parts[parts.index("blocks") + 2 :]) if "blocks" in parts else name


def ratio(difference: dict[str, float], norm: dict[str, float], names: list[str]) -> float:
    return sum(difference[n] ** 2 for n in names) ** 0.5 / max(sum(norm[n] ** 2 for n in names) ** 0.5, 1e-300)
