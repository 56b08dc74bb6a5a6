"""How documents become the rows of optimizer steps: `stream`, `document`, `fixed`, `official`; see the README.

What comes next is a function of the data, the seed and the layout's settings alone: the same for any number of ranks. The
position is a few integers (`state_dict`), from which a layout goes on at once.
"""

from dataclasses import dataclass
from typing import Protocol

from rwkv.config.schema import Layout as Settings
from rwkv.data.batch import Batch
from rwkv.data.corpus import Corpus
from rwkv.data.feed import Feed, Pieces, Supply
from rwkv.data.layout.document import Documents
from rwkv.data.layout.fixed import Fixed, Samples
from rwkv.data.layout.stream import Stream
from rwkv.data.order import cubic, in_turn, magic_prime, shuffled
from rwkv.errors import DataError


class Layout(Protocol):
    tokens_per_step: float  # of a batch, on average

    def next(self) -> Batch | None: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, saved: dict) -> None: ...


@dataclass(frozen=True)
class Source:
    """A corpus, its share of the tokens in a mix, and how many epochs of it there may be at most."""

    name: str
    corpus: Corpus
    weight: float = 1.0
    epochs: float | None = None

    def supply(self, items, order) -> Supply:
        return Supply(items, order, self.weight, None if self.epochs is None else int(self.epochs * len(items)))


def build(settings: Settings, sources: list[Source], ctx_len: int, seed: int, independent: bool) -> tuple[Layout, int]:
    """The layout of a `layout=` option, and how many documents are cut into pieces that know nothing of each other.

    Args:
        independent: whether every chunk stands alone (`bptt=off`).

    Raises:
        DataError: there is too little data for it.
    """
    length = ctx_len * settings.chunks
    if settings.kind in ("fixed", "official"):
        return _fixed(settings, sources, length, seed), 0
    joined = not settings.reset
    positions = sum(s.corpus.count - (0 if joined else len(s.corpus)) for s in sources)
    if settings.kind == "stream":
        if positions < settings.rows * ctx_len:
            raise DataError(
                f"layout.rows={settings.rows} of at least one chunk each (ctx_len={ctx_len}) need {settings.rows * ctx_len:,} tokens, "
                f"the training text has {positions:,}; at most layout.rows={max(1, positions // ctx_len)} here"
            )
        limit = settings.max_tokens or positions // settings.rows  # no lane is still in a document when the others begin anew
    else:
        limit = ctx_len if independent else None
    items = [Pieces(s.corpus, limit, joined) for s in sources]
    feed = Feed([s.supply(i, shuffled(len(i), seed + n)) for n, (s, i) in enumerate(zip(sources, items, strict=True))])
    cut = sum(i.cut for i in items)
    if settings.kind == "stream":
        return Stream(feed, settings.rows, length, carry=not independent, reset=settings.reset), cut
    # whole chunks, and no row beside a document that goes on may be longer than what is read of it
    cap = settings.max_tokens and max(length, -(-settings.max_tokens // ctx_len) * ctx_len)
    return Documents(feed, settings.rows, ctx_len, length, cap, settings.window, seed, settings.reset), cut


def _fixed(settings: Settings, sources: list[Source], length: int, seed: int) -> Fixed:
    supplies = []
    for n, source in enumerate(sources):
        samples = Samples(source.corpus, length, settings.reset)
        if settings.kind == "official":
            prime = magic_prime(samples.tokens // length - 1)
            order = None if prime is None else cubic(prime)
        else:
            order = shuffled(len(samples), seed + n) if len(samples) else None
        if order is None:
            few = 3 if settings.kind == "official" else 1
            raise DataError(
                f"layout={settings.kind} needs at least {few} samples of {length:,} tokens (layout.chunks x ctx_len), "
                f"{source.name} has {samples.tokens:,} tokens"
            )
        supplies.append(source.supply(samples, order))
    return Fixed(Feed(supplies), settings.rows, length)


def validation(corpus: Corpus, rows: int, step_tokens: int) -> Stream:
    """Every document once, in order, in lanes."""
    items = Pieces(corpus)
    return Stream(Feed([Supply(items, in_turn(len(items)), limit=len(items))]), rows, step_tokens)
