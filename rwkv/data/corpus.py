"""Corpus: tokens of many documents back to back, each ending in the end-of-document token, and where each begins."""

import functools
import hashlib
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv.data.sources import Document
from rwkv.data.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv.errors import DataError

BLOCK = 2**20  # tokens of a memory-mapped file looked at together


@dataclass(frozen=True, eq=False)
class Corpus:
    """tokens: [n] uint8, uint16 or uint32, possibly memory-mapped; offsets: [documents + 1] int64."""

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, i: int) -> np.ndarray:
        """The i-th document's tokens, its end token included: a view."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def predictable(self) -> int:
        """Tokens that can be predicted: all but each document's first."""
        return len(self.tokens) - len(self)

    @property
    def fingerprint(self) -> str:
        """Of sizes, and of the tokens themselves up to 64 MiB evenly spread."""
        digest = hashlib.sha256(self.offsets.tobytes())
        step = max(1, len(self.tokens) // 2**25)
        digest.update(np.ascontiguousarray(self.tokens[::step]).tobytes())
        return digest.hexdigest()[:16]

    @functools.lru_cache(maxsize=1)  # asked for several times in a run, of one corpus
    def unigram_entropy(self, vocab_size: int) -> float:
        """Nats a token of a model that knows only how often each token occurs."""
        counts = sum(np.bincount(block, minlength=vocab_size) for _, block in _blocks(self.tokens))
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())


def _blocks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(start, tokens from there): what is made of a block may take more bytes a token than the tokens."""
    for start in range(0, len(tokens), BLOCK):
        yield start, np.asarray(tokens[start : start + BLOCK])


def tokenise(documents: Iterable[Document], tokenizer: Tokenizer) -> Corpus:
    """Encode documents in order, an end-of-document token behind each."""
    pieces, sizes = [], []
    for _, text in documents:
        ids = tokenizer.encode(text)
        pieces += [ids, np.array([END_OF_DOCUMENT], dtype=ids.dtype)]
        sizes.append(len(ids) + 1)
    return Corpus(np.concatenate(pieces), np.cumsum([0, *sizes]))


def load_tokens(path: str | None, vocab_size: int) -> Corpus:
    """A .npy file of token ids, memory-mapped; the end-of-document id parts it into documents.

    Raises:
        DataError: not such a file, or ids that the vocabulary does not have.
    """
    if path is None:
        raise DataError("data=tokens needs data.path=FILE.npy")
    try:
        tokens = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"data.path={path}: not a readable .npy file: {error}") from error
    if not isinstance(tokens, np.ndarray):
        tokens.close()
        raise DataError(f"data.path={path}: an archive of several arrays; save the token ids alone with np.save, as a .npy file")
    if tokens.ndim != 1 or tokens.dtype not in (np.uint8, np.uint16, np.uint32) or not len(tokens):
        raise DataError(f"data.path={path}: {tokens.dtype}{list(tokens.shape)}; wanted token ids [n] as uint8, uint16 or uint32")
    highest, ends = 0, [np.array([0, len(tokens)])]
    for start, block in _blocks(tokens):
        highest = max(highest, int(block.max()))
        ends.append(start + np.flatnonzero(block == END_OF_DOCUMENT) + 1)
    if highest >= vocab_size:
        raise DataError(f"data.path={path}: token id {highest} is outside the vocabulary of {vocab_size}; set model.vocab_size or another tokenizer")
    return Corpus(tokens, np.unique(np.concatenate(ends)).astype(np.int64))


def split(corpus: Corpus, share: float) -> tuple[Corpus, Corpus | None]:
    """(training, validation): a share of the documents; where that is less than one, that share of each one's tail.

    Which ones are held out depends on their number alone, so that every seed is validated on the same text. Nothing is
    held out (None) where that would leave no token to predict there: each document of the validation has at least one.
    """
    if share == 0:
        return corpus, None
    i = np.arange(len(corpus) + 1)
    held = np.diff(np.floor(i * share + 0.5 - share / 4)) > 0  # evenly spread, the first about half of 1 / share documents in
    if round(len(corpus) * share, 9) >= 1 and not held.all():
        train, val = ([corpus.document(i) for i in np.flatnonzero(which)] for which in (~held, held))
    else:
        spans = list(zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True))
        cuts = [o + max(1, math.floor((e - o) * (1 - share))) for o, e in spans]
        train = [corpus.tokens[o:c] for (o, _), c in zip(spans, cuts, strict=True)]
        val = [corpus.tokens[c:e] for (_, e), c in zip(spans, cuts, strict=True)]
    val = [document for document in val if len(document) > 1]
    return (_join(train), _join(val)) if val else (corpus, None)


def _join(documents: list[np.ndarray]) -> Corpus:
    tokens = documents[0] if len(documents) == 1 else np.concatenate(documents)  # one is left where it is
    return Corpus(tokens, np.cumsum([0, *map(len, documents)]))
