"""One chunk forward, and one chunk forward and backward: as they are, or captured once as CUDA graphs and replayed.

A chunk of a small model is some thousand short kernels, which a CPU launches more slowly than a GPU runs them. All whole
chunks of a document have the same shapes, so a graph of them, captured once, launches each at one go.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rwkv.data.batch import Chunk
from rwkv.kernels import again
from rwkv.model.loss import LossModel
from rwkv.model.state import State


class Eager:
    """Runs `model` on chunks. selective: what is cheap to compute is not kept for the backward (`rwkv.kernels.again`)."""

    def __init__(self, model: LossModel, selective: bool = False):
        self.model, self.selective = model, selective
        if selective:
            for block in model.rwkv.blocks:
                block.register_forward_hook(again.forget)

    @torch.no_grad()
    def forward(self, chunk: Chunk, state: State) -> State:
        """The state after the chunk, without a graph."""
        return self.model(chunk.tokens, state, chunk.reset)[1]

    def forward_with_graph(self, chunk: Chunk, state: State) -> tuple[Tensor, State]:
        """The loss, of each source, and the final state."""
        with again.selective(self.selective):
            return self.model(chunk.tokens, state, chunk.reset, chunk.targets, chunk.weight)

    def backward_from(self, scalar: Tensor) -> None:
        """Add the gradients of a scalar to `.grad`."""
        scalar.backward()

    def backward(self, chunk: Chunk, state: State, d_end: list[Tensor] | None, wanted: bool) -> tuple[Tensor, State, list[Tensor] | None]:
        """Add the parameter gradients of a chunk to `.grad`.

        Args:
            d_end: the gradients of the final state's tensors; None for zero.
            wanted: whether the gradient of the initial state is.

        Returns:
            The loss (of each source) and the final state, detached; the gradients of the initial state's tensors, or None.
        """
        start = state.leaf() if wanted else state
        loss, end = self.forward_with_graph(chunk, start)
        scalar = loss.sum()
        if d_end is not None:  # one whose gradient is that of the loss and, through the final state, of all chunks behind
            scalar = scalar + sum((x * g).sum(dtype=loss.dtype) for x, g in zip(end.tensors(), d_end, strict=True))
        self.backward_from(scalar)
        d_start = [torch.zeros_like(x) if x.grad is None else x.grad for x in start.tensors()] if wanted else None
        return loss.detach(), end.detach(), d_start


class Graphed(Eager):
    """The same on a CUDA device; a shape that comes often is captured, and then replayed.

    A captured backward adds into the `.grad` tensors of its capture: clear them by zeroing, never by dropping them.
    A graph keeps the memory of its activations; where that is not to be had, chunks run as they are.

    Args:
        after: how often a shape comes before it is captured.
        say: is told why nothing is captured, if so.
    """

    def __init__(self, model: LossModel, selective: bool = False, after: int = 8, say: Callable[[str], None] = print):
        super().__init__(model, selective)
        self.after, self.say = after, say
        self.seen: dict[tuple, int] = {}
        self.graphs: dict[tuple, _Graph] = {}
        self.pool = None
        self.able = True

    def forward(self, chunk: Chunk, state: State) -> State:
        graph = self._graph("forward", chunk, state)
        return super().forward(chunk, state) if graph is None else graph(chunk, state)

    def backward(self, chunk: Chunk, state: State, d_end: list[Tensor] | None, wanted: bool) -> tuple[Tensor, State, list[Tensor] | None]:
        graph = self._graph("backward", chunk, state)
        if graph is None:
            return super().backward(chunk, state, d_end, wanted)
        loss, end, d_start = graph(chunk, state, d_end)
        return loss, end, d_start if wanted else None

    def _graph(self, what: str, chunk: Chunk, state: State) -> "_Graph | None":
        key = what, chunk.tokens.shape, chunk.reset is None
        if key not in self.graphs and self.able:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] > self.after:
                self._capture(key, chunk, state)
        return self.graphs.get(key)

    def _capture(self, key: tuple, chunk: Chunk, state: State) -> None:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        run = super().forward if key[0] == "forward" else super().backward
        try:
            self.graphs[key] = _Graph(run, key[0] == "backward", chunk, state, self.pool)
        except RuntimeError as error:  # out of memory, or an operation that cannot be captured
            self.able = False
            self.say(f"no CUDA graphs, chunks are launched kernel by kernel: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()


def runner(model: LossModel, graphs: bool, selective: bool = False, say: Callable[[str], None] = print) -> Eager:
    """What runs chunks of a model: with CUDA graphs if they are asked for and it is on a CUDA device."""
    return Graphed(model, selective, say=say) if graphs and next(model.parameters()).is_cuda else Eager(model, selective)


class _Graph:
    """A captured `run`: copies its arguments to where the graph reads them, replays it, copies what it wrote."""

    def __init__(self, run: Callable, backward: bool, chunk: Chunk, state: State, pool):
        self.chunk = replace(chunk, **{n: x.clone() for n, x in vars(chunk).items() if isinstance(x, Tensor)})
        self.chunk.weight.zero_()  # what is run before and during the capture adds nothing to the gradients
        self.state = state.map(torch.clone)
        self.d_end = [torch.zeros_like(x) for x in state.tensors()] if backward else None
        args = (self.chunk, self.state, self.d_end, True) if backward else (self.chunk, self.state)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run(*args)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):  # states may be on their way
            self.out = run(*args)

    def __call__(self, chunk: Chunk, state: State, d_end: list[Tensor] | None = None):
        for name, place in vars(self.chunk).items():
            if isinstance(place, Tensor):
                place.copy_(getattr(chunk, name))
        for place, x in zip(self.state.tensors(), state.tensors(), strict=True):
            place.copy_(x)
        for place, x in zip(self.d_end or (), d_end or [None] * len(self.d_end or ()), strict=True):
            place.zero_() if x is None else place.copy_(x)
        self.graph.replay()
        if self.d_end is None:
            return self.out.map(torch.clone)
        loss, end, d_start = self.out
        return loss.clone(), end.map(torch.clone), [x.clone() for x in d_start]
