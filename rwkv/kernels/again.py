"""Selective activation recomputation: what is cheap to compute is not kept for the backward but computed again there.

An operation offers its outputs with a function that gives them once more, bit for bit. Where autograd would save one of them
for some other operation, it saves a note instead; the first that is asked for computes all, the last lets go of them.
The idea is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_offered: dict[Any, tuple[Tensor, "_Made", int]] | None = None  # by address; held, so that no other tensor gets an address here


@contextmanager
def selective(wanted: bool = True) -> Iterator[None]:
    """Within it, what is offered is not kept. Call `forget` when the operations that use it have run."""
    global _offered
    if not wanted:
        yield
        return
    _offered = {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _offered = None


def selecting() -> bool:
    """Whether the backward is to compute again what it cheaply can."""
    return _offered is not None


def offer(outputs: Sequence[Tensor], run: Callable[..., Sequence[Tensor]], *inputs: Any) -> None:
    """`outputs` are what run(*inputs) gives. Those that lie in an input's memory cost nothing and are left out."""
    if selecting() and torch.is_grad_enabled():
        made = _Made(run, [_pack(x) if isinstance(x, Tensor) else x for x in inputs])
        given = {_address(x) for x in inputs if isinstance(x, Tensor)}
        for i, out in enumerate(outputs):
            if _address(out) not in given:
                _offered[_address(out)] = out.detach(), made, i


def forget(*_: Any) -> None:
    """Let go of what was offered so far; what is saved from now on is kept. Takes and ignores the arguments of a forward hook."""
    if _offered:
        _offered.clear()


@dataclass
class _Made:
    run: Callable[..., Sequence[Tensor]]
    inputs: list[Any]
    uses: int = 0
    left: int = 0
    outputs: Sequence[Tensor] | None = None

    def output(self, i: int) -> Tensor:
        if self.outputs is None:
            with torch.no_grad():
                self.outputs = self.run(*map(_unpack, self.inputs))
            self.left = self.uses
        out = self.outputs[i]
        self.left -= 1
        if self.left == 0:
            self.outputs = None
        return out


@dataclass(frozen=True)
class _Note:
    made: _Made
    output: int
    shape: torch.Size = field(repr=False)


def _address(x: Tensor) -> Any:
    """Where x lies; on the meta device, where nothing does, its storage stands for that."""
    return (x.untyped_storage()._cdata, x.storage_offset()) if x.is_meta else x.data_ptr()


def _pack(x: Tensor) -> Tensor | _Note:
    out, made, i = (_offered or {}).get(_address(x), (None, None, 0))
    if out is None or x.numel() != out.numel() or not x.is_contiguous():
        return x
    made.uses += 1
    return _Note(made, i, x.shape)


def _unpack(x: Any) -> Any:
    return x.made.output(x.output).view(x.shape) if isinstance(x, _Note) else x
