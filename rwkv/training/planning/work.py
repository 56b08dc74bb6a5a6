"""What a run asks of a machine, in numbers, from its settings and the shapes of its parameters: nothing is made."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkv.checkpoint import official
from rwkv.config.derived import kernels_of, size_of
from rwkv.config.schema import TrainConfig
from rwkv.config.vocab import VOCAB_SIZES
from rwkv.data import tokenizer
from rwkv.kernels.registry import Kernels
from rwkv.model.rwkv import RWKV
from rwkv.model.size import Size
from rwkv.model.state import DTYPES, State


@dataclass(frozen=True)
class Parameters:
    """Numbers of elements. unit: the most that a sharded strategy gathers at once, a block or an embedding. matrices: what products
    take part of each token, the head's among them."""

    total: int
    unit: int
    largest: int
    matrices: int
    head: int


@functools.cache
def parameters(size: Size) -> Parameters:
    """From the shapes of two blocks: all but the first are alike."""
    with torch.device("meta"):
        model = RWKV(Size(**{**vars(size), "n_layer": 2}))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    in_product = {n: k for n, k in sizes.items() if k > size.n_embd and not n.startswith("emb.")}  # what is no larger is a vector
    total, matrices = (sum(x.values()) for x in (sizes, in_product))
    block, of_block = (sum(k for n, k in x.items() if n.startswith("blocks.1.")) for x in (sizes, in_product))
    more, embedding = size.n_layer - 2, size.vocab_size * size.n_embd
    return Parameters(total + more * block, max(block, embedding), max(sizes.values()), matrices + more * of_block, embedding)


@dataclass(frozen=True)
class Work:
    """
    rows: side by side on all ranks; at_once: at most so many on one.
    chunks: of the longest row of a batch; windows: that a gradient goes back through, at most so many chunks each.
    tokens_per_step: on average, or as near as can be said without the data.
    """

    size: Size
    weights: str
    rows: int
    at_once: int | None
    ctx: int
    chunks: int
    window: int
    accumulate: int
    recompute: bool  # block by block
    selective: bool
    states: str
    graphs: bool
    kernels: Kernels
    tokens: int
    residual: str | None = None  # dtype, if it is not the weights'

    @staticmethod
    def of(cfg: TrainConfig, size: Size, document: int | None = None) -> "Work":
        """document: tokens of the longest one, where the layout reads whole ones."""
        layout, ctx = cfg.layout, cfg.ctx_len.tokens
        longest = (layout.max_tokens or document) if layout.kind == "document" else None
        chunks = max(layout.chunks, -(-longest // ctx) if longest else 1)
        window = {"exact": chunks, "truncated": min(cfg.bptt.depth, chunks), "off": 1}[cfg.bptt.mode]
        return Work(
            size, cfg.precision.weights, layout.rows, layout.at_once, ctx, chunks, window, layout.accumulate,
            cfg.bptt.recompute is True, cfg.bptt.recompute == "selective", cfg.bptt.states, cfg.bptt.graphs,
            kernels_of(cfg, size), cfg.trainer.tokens, cfg.precision.residual,
        )  # fmt: skip

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return DTYPES[self.weights].itemsize

    @property
    def master(self) -> int:
        """Bytes of a master weight, a moment, a sum of gradients."""
        return max(4, self.element)

    @property
    def state(self) -> int:
        """Bytes of one row's."""
        return State.row_bytes(self.size, DTYPES[self.weights])

    @property
    def first_pass(self) -> int:
        """Of the chunks, how many go through a pass without a graph before."""
        return self.chunks - -(-self.chunks // self.window)

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.chunks * self.ctx * self.accumulate

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.tokens_per_step)

    def rows_of_rank(self, world: int) -> int:
        return -(-self.rows // world)


def model_size(cfg: TrainConfig) -> Size:
    """Of the model that the settings name, a file's header read, a tokenizer's if it has one. Raises UserError."""
    vocab = VOCAB_SIZES.get(cfg.tokenizer.kind) or tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path).vocab_size
    return size_of(cfg, vocab, official.size_of(official.load(Path(cfg.model.path))) if cfg.model.path else None)
