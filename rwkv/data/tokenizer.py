"""Text to token ids and back. Id 0 ends a document in every tokenizer, as in the official data; no text gives it.

Encoding takes bytes, so that any file can be read; decoding gives bytes, so that a stream may stop inside a character.
Tokenizers travel into other processes by their settings and read their file there.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from rwkv.config.vocab import END_OF_DOCUMENT
from rwkv.data.huggingface import HuggingFace
from rwkv.data.world import World


class Tokenizer(Protocol):
    vocab_size: int  # rows of the embedding
    fingerprint: str  # changes when the same text would give other ids

    def encode(self, text: bytes) -> np.ndarray:
        """[tokens] uint16, or uint32 where the vocabulary is larger."""

    def encode_batch(self, texts: Sequence[bytes], end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one behind the other, each with an END_OF_DOCUMENT if `end`; and [texts] int64, how many each has."""

    def decode(self, ids: Iterable[int]) -> bytes:
        """Ids that stand for no text, as END_OF_DOCUMENT, give none."""


class Bytes:
    """Byte b is token b + 1: the first 257 ids of RWKV World."""

    vocab_size = 257
    fingerprint = "bytes"

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint16) + 1

    def encode_batch(self, texts: Sequence[bytes], end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        ids, sizes = self.encode(b"".join(texts)), np.fromiter(map(len, texts), np.int64, len(texts))
        return (np.insert(ids, np.cumsum(sizes), END_OF_DOCUMENT), sizes + 1) if end else (ids, sizes)

    def decode(self, ids: Iterable[int]) -> bytes:
        return bytes(i - 1 for i in ids if i != END_OF_DOCUMENT)


def build(kind: str, path: str | None) -> Tokenizer:
    """The tokenizer of a `tokenizer=` option. Raises ConfigError if its file is missing or of another form."""
    if kind == "bytes":
        return Bytes()
    return World(path) if kind == "world" else HuggingFace(kind, path)
