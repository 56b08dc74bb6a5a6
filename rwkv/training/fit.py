"""Whether a training run fits the device, said before anything is allocated."""

from dataclasses import dataclass, fields, replace

import torch

from rwkv.config.schema import TrainConfig
from rwkv.errors import ConfigError
from rwkv.memory import free_bytes, human
from rwkv.model.loss import LOGITS_AT_ONCE
from rwkv.model.rwkv import RWKV, count_parameters
from rwkv.model.size import Size


@dataclass(frozen=True)
class Need:
    """Bytes of a training run by category."""

    weights: int
    gradients: int
    adam: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.adam + self.activations + self.logits

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {human(getattr(self, f.name))}" for f in fields(self))
        return f"{human(self.total)} ({parts})"


# saved for the backward in one block, in multiples of tokens x n_embd x element size: measured with the chunked kernel
ACTIVATIONS_PER_BLOCK = 70


def training_need(size: Size, rows: int, ctx_len: int, weights: str, recompute: bool) -> Need:
    """What training takes on one device, with all of the model and its optimizer there: an estimate from the sizes."""
    n = parameters(size)
    element = {"bf16": 2, "fp32": 4, "fp64": 8}[weights]
    master = max(4, element)
    block = rows * ctx_len * size.n_embd * element
    blocks = (ACTIVATIONS_PER_BLOCK + size.n_layer * 3) if recompute else ACTIVATIONS_PER_BLOCK * size.n_layer
    return Need(
        weights=n * (element + (master if element < master else 0)),
        gradients=n * master,
        adam=2 * n * master,
        activations=block * blocks,
        logits=2 * master * min(LOGITS_AT_ONCE, rows * ctx_len * size.vocab_size),
    )


def parameters(size: Size) -> int:
    """Of a model of this size, from those of one and of two layers: all but the first have equally many."""
    with torch.device("meta"):
        one, two = (count_parameters(RWKV(replace(size, n_layer=n))) for n in (1, 2))
    return one + (size.n_layer - 1) * (two - one)


def check_fit(cfg: TrainConfig, size: Size, device: torch.device) -> None:
    """Raises ConfigError before anything is allocated if training cannot fit the device, with the numbers and what to change."""

    def need(rows: int = cfg.layout.rows, ctx: int = cfg.ctx_len.tokens, recompute: bool = cfg.bptt.recompute is True) -> Need:
        return training_need(size, rows, ctx, cfg.precision.weights, recompute)

    free, wanted = free_bytes(device), need()
    if wanted.total <= free:
        return
    smaller = {"layout.rows=1": need(rows=1), "ctx_len=128": need(ctx=128), "bptt.recompute=true": need(recompute=True)}
    smaller["layout.rows=1 ctx_len=128 bptt.recompute=true"] = need(1, 128, True)
    fits = next((f"it fits with {change} ({human(n.total)})" for change, n in smaller.items() if n.total <= free), None)
    advice = fits or "take a smaller model=, precision=bf16, or a machine with more memory"
    raise ConfigError(f"this run does not fit: it needs about {wanted}, and {human(free)} are free on {device}; {advice}")
