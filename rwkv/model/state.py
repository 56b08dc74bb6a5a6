"""State: everything a document carries from one chunk to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv.model.size import Size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}  # of the weights, by the names of the settings


@dataclass(frozen=True)
class State:
    """The state of B rows. Zero is the start of a document.

    shift: [B, n_layer, 2, n_embd] in the model's dtype: the last normalised input of time-mix and channel-mix.
    wkv: [B, n_layer, n_head, head_size, head_size] (value, key), in v4 [B, n_layer, 3, n_embd] (see
        `rwkv.kernels.wkv4`); fp32, fp64 in an fp64 model.
    """

    shift: Tensor
    wkv: Tensor

    @staticmethod
    def zeros(size: Size, rows: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> "State":
        """The state before the first token of `rows` documents, for a model of that dtype."""
        shift = torch.zeros(rows, size.n_layer, 2, size.n_embd, dtype=dtype, device=device)
        wkv_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        wkv = (3, size.n_embd) if size.version == "v4" else (size.n_head, size.head_size, size.head_size)
        return State(shift, torch.zeros(rows, size.n_layer, *wkv, dtype=wkv_dtype, device=device))

    @staticmethod
    def row_bytes(size: Size, dtype: torch.dtype) -> int:
        """Of one row."""
        return sum(x.numel() * x.element_size() for x in State.zeros(size, 1, dtype, "meta").tensors())

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.shift, self.wkv

    def map(self, fn: Callable[[Tensor], Tensor]) -> "State":
        return State(*(fn(x) for x in self.tensors()))

    def detach(self) -> "State":
        return self.map(torch.Tensor.detach)

    def leaf(self) -> "State":
        """The same values as the start of a new graph, whose gradient can be asked for."""
        return self.map(lambda x: x.detach().requires_grad_())

    def to(self, device: torch.device | str) -> "State":
        return self.map(lambda x: x.to(device))

    def put(self, rows: slice, other: "State") -> "State":
        """With `other` in some rows."""

        def replaced(x: Tensor, y: Tensor) -> Tensor:
            if len(x) == len(y):
                return y
            x = x.clone()
            x[rows] = y
            return x

        return State(*map(replaced, self.tensors(), other.tensors()))

    def clear(self, rows: Tensor) -> "State":
        """Zero in the rows where `rows` [B] bool is true: a new document starts there."""
        return self.map(lambda x: torch.where(rows.view(-1, *[1] * (x.dim() - 1)), torch.zeros_like(x), x))
