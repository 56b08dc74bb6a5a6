"""What one chunk takes while its gradient is computed: counted in a dry run of the model itself, with the kernels of the device.

Blocks are alike, so two and three of them tell of any number; v7's first hands its value to the others, which is kept once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rwkv.kernels import again, dry
from rwkv.kernels.registry import Kernels
from rwkv.model.loss import Head
from rwkv.model.rwkv import RWKV
from rwkv.model.size import Size
from rwkv.model.state import DTYPES, State
from rwkv.training.planning.live import Live


@dataclass(frozen=True)
class Chunk:
    """Bytes, for `rows` rows of `tokens` tokens.

    kept: for the backward, by all blocks; by_block: by one of them.
    inputs: what enters the blocks and leaves the last, which activation checkpointing keeps instead.
    forward: of a forward without a graph.
    backward: what a block's backward takes besides what is kept.
    logits: of the head, with the gradients that its forward forms.
    """

    kept: int
    by_block: int
    inputs: int
    forward: int
    backward: int
    logits: int


MOST_TOKENS = {"v4": 512}  # of a dry run: where kernels loop over tokens in Python, it would take its time
OF_OTHERS = 4096


@functools.cache
def chunk_bytes(
    size: Size, rows: int, tokens: int, weights: str, device: str, kernels: Kernels = Kernels(), selective: bool = False, residual: str | None = None
) -> Chunk:
    """device: "cpu" or "cuda"; selective: as `bptt.recompute=selective`. Raises KernelError if one of `kernels` cannot run there."""
    dtype, wide, most = DTYPES[weights], DTYPES.get(residual), MOST_TOKENS.get(size.version, OF_OTHERS)

    def model(layers: int) -> RWKV:
        return RWKV(replace(size, n_layer=layers, vocab_size=16), kernels, wide).to(dtype)

    with dry.on(device):
        logits = _head(size, rows * tokens, dtype, kernels)
        found = _count(model, size.n_layer, rows, min(tokens, most), selective)
        if tokens > most:
            half = _count(model, size.n_layer, rows, most // 2, selective)
            found = [b + (b - a) * (tokens - most) // (most - most // 2) for a, b in zip(half, found, strict=True)]
    kept, block, forward, backward = found
    entering = (size.n_layer + 1) * (wide or dtype).itemsize + (dtype.itemsize if size.version == "v7" else 0)
    return Chunk(kept, block, rows * tokens * size.n_embd * entering, forward, backward, logits)


def _count(model: Callable[[int], RWKV], layers: int, rows: int, tokens: int, selective: bool) -> list[int]:
    """kept, by_block, forward and backward of `Chunk`, of so many layers. model: makes one of few."""
    (kept, _), (more, peak) = (_blocks(model(n), rows, tokens, selective) for n in (2, 3))
    block = more - kept
    return [kept + (layers - 2) * block, block, _forward(model(2), rows, tokens), peak - more]


@torch.no_grad()
def _forward(rwkv: RWKV, rows: int, tokens: int) -> int:
    """The most bytes in a forward without a graph."""
    ids, state, reset = _inputs(rwkv, rows, tokens)
    with Live() as live:
        rwkv(ids, state, reset)
        return live.peak


def _inputs(rwkv: RWKV, rows: int, tokens: int) -> tuple[Tensor, State, Tensor]:
    ids, reset = torch.empty(rows, tokens, dtype=torch.long), torch.empty(rows, tokens, dtype=torch.bool)
    return ids, State.zeros(rwkv.size, rows, rwkv.emb.weight.dtype, "meta"), reset


def _blocks(rwkv: RWKV, rows: int, tokens: int, selective: bool) -> tuple[int, int]:
    """(bytes alive after a forward with a graph, the most in its backward), what was there before not counted."""
    ids, state, reset = _inputs(rwkv, rows, tokens)
    for param in rwkv.parameters():
        param.register_post_accumulate_grad_hook(_drop)  # there is a sum already that it is added to
    if selective:
        for block in rwkv.blocks:
            block.register_forward_hook(again.forget)
    state = state.leaf()
    with Live() as live:
        with again.selective(selective):
            hidden, end = rwkv(ids, state, reset)
        kept = live.mark()
        outputs = [hidden, *end.tensors()]
        grads = [torch.empty_like(x) for x in outputs]
        del hidden, end
        torch.autograd.backward(outputs, grads)
        return kept, live.peak


def _head(size: Size, tokens: int, dtype: torch.dtype, kernels: Kernels) -> int:
    """The most bytes in the head's forward and backward."""
    head = Head(size.n_embd, size.vocab_size, kernels["cross_entropy_"]).to(dtype)
    head.weight.register_post_accumulate_grad_hook(_drop)
    hidden = torch.empty(1, tokens, size.n_embd, dtype=dtype, requires_grad=True)
    targets, weight = torch.empty(1, tokens, dtype=torch.long), torch.empty(1, tokens)
    with Live() as live:
        head(hidden, targets, weight).backward()
        return live.peak


def _drop(param: Tensor) -> None:
    param.grad = None
