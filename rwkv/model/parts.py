"""What the generations share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def raw(*shape: int) -> nn.Parameter:
    """A parameter that is no module's weight, uninitialised."""
    return nn.Parameter(torch.empty(shape))


def linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


def plus(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """bias + x @ weight in one pass: bias [1, 1, n_out], x [B, T, n_in], weight [n_in, n_out]."""
    return F.linear(x, weight.T, bias.view(-1))


def ramps(n_embd: int) -> tuple[Tensor, Tensor]:
    """(d, lin) of the initialisation tables: i / n_embd and i / (n_embd - 1) over the channels i, in fp64."""
    i = torch.arange(n_embd, dtype=torch.float64)
    return i / n_embd, i / (n_embd - 1)


def zigzag(n_embd: int) -> Tensor:
    """-1, 0, 1 in turn over the channels, beginning with 0."""
    return (torch.arange(n_embd, dtype=torch.float64) + 1) % 3 - 1


@torch.no_grad()
def orthogonal(weight: Tensor, gain: float, grow: bool = False) -> None:
    """Orthogonal initialisation; with `grow` the gain of a matrix with more rows than columns is times sqrt(rows/cols)."""
    rows, cols = weight.shape
    gain *= (rows / cols) ** 0.5 if grow and rows > cols else 1.0
    if weight.is_meta:
        return
    exact = torch.empty(rows, cols, dtype=torch.float32, device=weight.device)
    weight.copy_(nn.init.orthogonal_(exact, gain))


def is_matrix(name: str, param: Tensor) -> bool:
    """Whether weight decay applies to a parameter of v5 to v7: matrices of modules, not the low-rank parts."""
    return name.endswith(".weight") and param.squeeze().dim() >= 2
