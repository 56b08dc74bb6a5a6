"""The backward of a chunk block by block, from what entered each block: activation checkpointing without a forward of its own.

Pass 1 of exact BPTT goes through every block anyway. Where what enters them is kept, pass 2 has one block's graph at a time
on the accelerator and computes each block once more, not twice: forward, again, backward, as truncated BPTT with activation
checkpointing.
"""

import torch
from torch import Tensor

from rwkv.data.batch import Chunk
from rwkv.model.loss import LossModel
from rwkv.model.state import State


def forward(model: LossModel, chunk: Chunk, state: State) -> tuple[State, list[Tensor]]:
    """Without a graph: the state after the chunk, and what `backward` needs."""
    kept: list[Tensor] = []
    with torch.no_grad():
        _, state = model.rwkv(chunk.tokens, state, chunk.reset, kept)
    return state, kept


def backward(
    model: LossModel, chunk: Chunk, state: State, kept: list[Tensor], d_end: list[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """Add the parameter gradients of a chunk to `.grad`.

    Args:
        state: the initial state.
        kept: as `forward` gave it.
        d_end: the gradients of the final state's tensors; None for zero.

    Returns:
        The loss, detached, and the gradients of the initial state's tensors.
    """
    rwkv = model.rwkv
    inputs, last = [x.detach() for x in kept[: len(rwkv.blocks)]], kept[len(rwkv.blocks)].detach().requires_grad_()
    v_first = kept[-1].detach() if len(kept) > len(rwkv.blocks) + 1 else None  # which v7 alone has
    loss = model.loss(rwkv.ln_out(last), chunk.targets, chunk.weight)
    loss.sum().backward()
    d_x, d_v_first = last.grad, None if v_first is None else torch.zeros_like(v_first)
    d_shift, d_wkv = [None] * len(rwkv.blocks), [None] * len(rwkv.blocks)
    for i in reversed(range(len(rwkv.blocks))):
        x, shift, wkv = (t.detach().requires_grad_() for t in (inputs[i], state.shift[:, i], state.wkv[:, i]))
        v = v_first.detach().requires_grad_() if i and v_first is not None else None
        x_out, shift_out, wkv_out, v_out = rwkv.blocks[i](x, shift, wkv, v, chunk.reset, rwkv.kernels)
        outputs, grads = [x_out], [d_x]
        if d_end is not None:
            outputs += [shift_out, wkv_out]
            grads += [d_end[0][:, i], d_end[1][:, i]]
        if i == 0 and v_first is not None:
            outputs.append(v_out)
            grads.append(d_v_first)
        torch.autograd.backward(outputs, grads)
        d_x, d_shift[i], d_wkv[i] = x.grad, shift.grad, wkv.grad
        if v is not None:
            d_v_first += v.grad
    rwkv.enter(chunk.tokens).backward(d_x)
    return loss.detach(), [torch.stack(d_shift, 1), torch.stack(d_wkv, 1)]
