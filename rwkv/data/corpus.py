"""Corpus: tokens of many documents back to back, each ending in the end-of-document token, and where each begins."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv.data.sources import Document
from rwkv.data.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv.errors import DataError

@dataclass(frozen=True)
class Corpus:
    """tokens: [n] uint16 or uint32, possibly memory-mapped; offsets: [documents + 1] int64; text_bytes: of the text."""

    tokens: np.ndarray
    offsets: np.ndarray
    text_bytes: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, i: int) -> np.ndarray:
        """The i-th document's tokens, its end token included: a view."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def fingerprint(self) -> str:
        """Of sizes, and of the tokens themselves up to 64 MiB evenly spread."""
        digest = hashlib.sha256(self.offsets.tobytes())
        step = max(1, len(self.tokens) // 2**25)
        digest.update(np.ascontiguousarray(self.tokens[::step]).tobytes())
        return digest.hexdigest()[:16]

    def unigram_entropy(self, vocab_size: int) -> float:
        """Nats a token of a model that knows only how often each token occurs."""
        counts = np.bincount(self.tokens, minlength=vocab_size)
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())


def tokenise(documents: Iterable[Document], tokenizer: Tokenizer) -> Corpus:
    """Encode documents in order, an end-of-document token behind each."""
    pieces, sizes, text_bytes = [], [], 0
    for _, text in documents:
        ids = tokenizer.encode(text)
        pieces += [ids, np.array([END_OF_DOCUMENT], dtype=ids.dtype)]
        sizes.append(len(ids) + 1)
        text_bytes += len(text)
    return Corpus(np.concatenate(pieces), np.cumsum([0, *sizes]), text_bytes)


def load_tokens(path: str | None, vocab_size: int) -> Corpus:
    """A .npy file of token ids, memory-mapped; the end-of-document id parts it into documents.

    Raises:
        DataError: not such a file, or ids that the vocabulary does not have.
    """
    if path is None:
        raise DataError("data=tokens needs data.path=FILE.npy")
    try:
        tokens = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.path={path}: not a readable .npy file: {error}") from error
    if tokens.ndim != 1 or tokens.dtype not in (np.uint8, np.uint16, np.uint32) or not len(tokens):
        raise DataError(f"data.path={path}: {tokens.dtype}{list(tokens.shape)}; wanted token ids [n] as uint8, uint16 or uint32")
    highest = int(tokens.max())
    if highest >= vocab_size:
        raise DataError(f"data.path={path}: token id {highest} is outside the vocabulary of {vocab_size}; set model.vocab_size or another tokenizer")
    ends = np.flatnonzero(np.asarray(tokens) == END_OF_DOCUMENT) + 1
    offsets = np.unique(np.concatenate([[0], ends, [len(tokens)]])).astype(np.int64)
    return Corpus(tokens, offsets, len(tokens))


def split(corpus: Corpus, share: float) -> tuple[Corpus, Corpus | None]:
    """(training, validation): a share of the documents; where that is less than one, that share of each one's tail.

    Which ones are held out depends on their number alone, so that every seed is validated on the same text.
    """
    if share == 0:
        return corpus, None
    every = max(2, round(1 / share))
    if len(corpus) >= every:
        held = np.arange(len(corpus)) % every == every // 2
        return _select(corpus, np.flatnonzero(~held)), _select(corpus, np.flatnonzero(held))
    cut = [o + max(1, math.floor((e - o) * (1 - share))) for o, e in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)]
    heads = [corpus.tokens[o:c] for o, c in zip(corpus.offsets[:-1], cut, strict=True)]
    tails = [corpus.tokens[c:e] for c, e in zip(cut, corpus.offsets[1:], strict=True)]
    return _join(corpus, heads), _join(corpus, [t for t in tails if len(t)])


def _select(corpus: Corpus, which: np.ndarray) -> Corpus:
    return _join(corpus, [corpus.document(i) for i in which])


def _join(corpus: Corpus, pieces: list[np.ndarray]) -> Corpus:
    sizes = [len(p) for p in pieces]
    return Corpus(np.concatenate(pieces), np.cumsum([0, *sizes]), round(corpus.text_bytes * sum(sizes) / len(corpus.tokens)))
