"""RWKV: embedding, blocks, head. (tokens, state) -> (hidden, state), in pure PyTorch.

Token by token, in chunks with carried state, or in one piece: the results are the same.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv.kernels.fused import norm_mix
from rwkv.kernels.registry import Kernels
from rwkv.model import v4, v5, v6, v7
from rwkv.model.loss import Head
from rwkv.model.parts import orthogonal
from rwkv.model.size import Size
from rwkv.model.state import State

# a generation is a module with TimeMix, ChannelMix and optimizer_group, WKV (its kernel), EMB_SCALE, default_rank, and
# version_in and heads_and_rank, which know it in a file
GENERATIONS = {"v4": v4, "v5.0": v5, "v5.1": v5, "v5": v5, "v6": v6, "v7": v7}


class Norm(nn.LayerNorm):
    """In the dtype of what is normed, which may be wider than its weights'."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Block(nn.Module):
    def __init__(self, generation, size: Size, layer: int):
        super().__init__()
        C = size.n_embd
        self.ln1, self.ln2 = Norm(C), Norm(C)
        self.first = layer == 0
        if self.first:
            self.ln0 = Norm(C)
        self.att, self.ffn = generation.TimeMix(size, layer), generation.ChannelMix(size, layer)

    def forward(self, x, shift_B2C, S, v_first, reset, kernels):
        """Returns (x, shift [B, 2, C], wkv state, v_first)."""
        if self.first:
            x = self.ln0(x)
        x, mixed, att_last = norm_mix(x, None, self.ln1.weight, self.ln1.bias, shift_B2C[:, 0], self.att.mixes(), reset, kernels["norm_mix"])
        out, S, v_first = self.att(mixed, S, v_first, reset, kernels)
        x, mixed, ffn_last = norm_mix(x, out, self.ln2.weight, self.ln2.bias, shift_B2C[:, 1], self.ffn.mixes(), reset, kernels["norm_mix"])
        # stack copies: a view of the last token would keep the whole activation alive
        return x + self.ffn(mixed, kernels), torch.stack([att_last, ffn_last], 1), S, v_first


class RWKV(nn.Module):
    """A model of the generation `size.version`. Parameters are uninitialised until `init_weights` or a loaded file fills them.

    Args:
        kernels: the backends asked for.
        residual: dtype of what passes from block to block, and of its sums and norms; None: the weights'.
    """

    def __init__(self, size: Size, kernels: Kernels = Kernels(), residual: torch.dtype | None = None):
        super().__init__()
        self.size, self.kernels, self.residual = size, kernels, residual
        generation = GENERATIONS[size.version]
        self.emb = nn.Embedding(size.vocab_size, size.n_embd)
        self.blocks = nn.ModuleList(Block(generation, size, layer) for layer in range(size.n_layer))
        self.ln_out = Norm(size.n_embd)
        self.head = Head(size.n_embd, size.vocab_size, self.kernels["cross_entropy_"])

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None, kept: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """
        Args:
            tokens: [B, T] int, T >= 1.
            state: of B rows, as an earlier call returned it; None starts every row anew.
            reset: [B, T] bool: true at a document's first token; nothing passes from before it.
            kept: a list that is given what entered each block and left the last, and in v7 the first block's value,
                n_layer + 1 or + 2 tensors [B, T, n_embd]: all that `rwkv.bptt.layerwise` needs for the backward.

        Returns:
            hidden [B, T, n_embd], normalised for `head`; and the state after the last token.
        """
        if state is None:
            state = State.zeros(self.size, len(tokens), self.emb.weight.dtype, tokens.device)
        x = self.enter(tokens)
        v_first, shifts, wkvs = None, [], []
        for block, shift, wkv in zip(self.blocks, state.shift.unbind(1), state.wkv.unbind(1), strict=True):
            if kept is not None:
                kept.append(x)
            x, shift, wkv, v_first = block(x, shift, wkv, v_first, reset, self.kernels)
            shifts.append(shift)
            wkvs.append(wkv)
        if kept is not None:
            kept += [x] if v_first is None else [x, v_first]
        return self.ln_out(x), State(torch.stack(shifts, 1), torch.stack(wkvs, 1))

    def enter(self, tokens: Tensor) -> Tensor:
        """What the first block takes, [B, T, n_embd]."""
        x = self.emb(tokens)
        return x if self.residual is None else x.to(self.residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., vocab_size] in fp32 (fp64 in an fp64 model)."""
        out = self.head(hidden)
        return out if out.dtype == torch.float64 else out.float()

    @torch.no_grad()
    def init_weights(self, seed: int) -> "RWKV":
        """The official initialisation of the generation, from this seed alone."""
        for name, weight in initial_weights(self.size, seed):
            self.get_parameter(name).copy_(weight)
        return self

    def optimizer_groups(self) -> dict[str, tuple[float, bool]]:
        """Name -> (learning-rate factor, whether weight decay applies)."""
        group = GENERATIONS[self.size.version].optimizer_group
        return {name: group(name, param) for name, param in self.named_parameters()}


def initial_weights(size: Size, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 weight on the CPU) of the generation's official initialisation, from this seed alone; one block in memory at a time."""
    with torch.device("meta"):
        blank = RWKV(size)
    blocks = ((f"blocks.{i}", block) for i, block in enumerate(blank.blocks))
    state = torch.Generator().manual_seed(seed).get_state()
    for name, part in (("emb", blank.emb), ("head", blank.head), ("ln_out", blank.ln_out), *blocks):
        part.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            _initialise(part, GENERATIONS[size.version].EMB_SCALE)
            state = torch.get_rng_state()
        yield from ((f"{name}.{n}", p.detach()) for n, p in part.named_parameters())
        part.to("meta")


@torch.no_grad()
def _initialise(part: nn.Module, emb_scale: float) -> None:
    for module in part.modules():
        if isinstance(module, nn.Embedding):
            module.weight.uniform_(-emb_scale, emb_scale)
        elif isinstance(module, Head):
            orthogonal(module.weight, 0.5, grow=True)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, Block):
            module.att.init_weights()
            module.ffn.init_weights()


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
