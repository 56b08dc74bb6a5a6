"""Mends three faults of Triton's interpreter (3.6): import before any kernel runs under TRITON_INTERPRET=1.

Its bf16 truncates instead of rounding, its products take the bits of a bf16 for an integer, and a loop bound that is an
argument fails with numpy >= 2.4.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_cast, _dot, _patch = (
    interpreter.InterpreterBuilder.cast_impl, interpreter.InterpreterBuilder.create_dot, interpreter._patch_lang_tensor
)  # fmt: skip


def _to_bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy().reshape(x.shape)


def _from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def cast(self, src, dst_type):
    old, new = src.dtype.scalar, dst_type.scalar
    if (old, new) == (tl.float32, tl.bfloat16):
        return interpreter.TensorHandle(_to_bf16(src.data), new)
    if (old, new) == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle(_from_bf16(src.data), new)
    return _cast(self, src, dst_type)


def dot(self, a, b, d, *args):
    a, b = (
        interpreter.TensorHandle(_from_bf16(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
    )
    return _dot(self, a, b, d, *args)


def patch(tensor, scope):
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def backwards():
    """From here on programs run from the last to the first: what one writes in another's place shows in one of the orders."""
    forwards = interpreter.InterpreterBuilder.set_grid_idx
    interpreter.InterpreterBuilder.set_grid_idx = lambda self, x, y, z: forwards(self, self.grid_dim[0] - 1 - x, y, z)


interpreter.InterpreterBuilder.cast_impl = cast
interpreter.InterpreterBuilder.create_dot = dot
interpreter._patch_lang_tensor = patch
