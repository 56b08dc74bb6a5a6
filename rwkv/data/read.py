"""The data of a run: its sources, what validates it, and what must not change while it goes on."""

import functools
from dataclasses import dataclass
from pathlib import Path

from rwkv.config.schema import TrainConfig
from rwkv.data.corpus import Corpus
from rwkv.data.layout import Source
from rwkv.data.prepare import prepared
from rwkv.data.tokenizer import Tokenizer
from rwkv.errors import DataError


@dataclass(frozen=True)
class Read:
    """sources: what is trained on; vals: what is held out, by source; fingerprint: of all of it and of the tokenizer.

    stores: of each source a line for the screen: what it is made of, what was dropped, where it lies.
    """

    sources: list[Source]
    vals: dict[str, Corpus]
    fingerprint: str
    stores: list[str]
    vocab_size: int

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """Nats a token of a model that knows only how often each token occurs in the first source."""
        return self.sources[0].corpus.unigram_entropy(self.vocab_size)


def read(cfg: TrainConfig, tokenizer: Tokenizer, vocab_size: int) -> Read:
    """Open or prepare all that the settings name.

    Raises:
        DataError: it cannot be read, or there is too little of it.
    """
    mix = cfg.data.mix or {}
    found = {
        name: prepared(data, cfg.tokenizer, tokenizer, vocab_size, Path(cfg.out))
        for name, data in ({name: source.data for name, source in mix.items()} or {cfg.data.kind: cfg.data}).items()
    }
    sources, vals = [], {}
    for name, (train, val, *_) in found.items():
        if train.count <= len(train):
            raise DataError(f"data={name}: nothing to predict: each of the {len(train):,} documents is one token alone; use other data")
        asked = mix.get(name)
        sources.append(Source(name, train, asked.weight if asked else 1.0, asked.epochs if asked else None))
        vals |= {name: val} if val is not None else {}
    fingerprint = "+".join(p.fingerprint for p in found.values())
    return Read(sources, vals, fingerprint, [p.line for p in found.values()], vocab_size)
