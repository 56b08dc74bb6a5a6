"""Greedy longest match of tokens on bytes: compiled (`longest_match.cpp`), or by `re` where nothing can be compiled."""

import ctypes
import functools
import itertools
import multiprocessing
import re
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rwkv.compile_cpp import compile_cpp
from rwkv.config.vocab import END_OF_DOCUMENT
from rwkv.errors import ConfigError, KernelError

SOURCE = Path(__file__).with_suffix(".cpp")


class Trie:
    """The compiled form. It releases the GIL and may be used by several threads at once.

    tokens: id (below 2^16) to bytes (1 to 255 of them), every single byte among them.
    Raises KernelError if `longest_match.cpp` cannot be built or loaded here.
    """

    def __init__(self, tokens: Mapping[int, bytes]):
        self._lib = _library()
        sizes = np.fromiter(map(len, tokens.values()), np.int64, len(tokens))
        ids = np.fromiter(tokens, np.uint16, len(tokens))
        self._trie = self._lib.rwkv_trie_new(b"".join(tokens.values()), sizes.ctypes.data, ids.ctypes.data, len(tokens))
        if self._trie is None:
            raise ConfigError(f"tokenizer.path: a vocabulary of {len(tokens)} tokens, {sizes.sum()} bytes, is more than the tokenizer holds")
        weakref.finalize(self, self._lib.rwkv_trie_free, self._trie)

    def encode(self, text: bytes) -> np.ndarray:
        ids = np.empty(len(text), np.uint16)
        n = self._lib.rwkv_trie_encode(self._trie, text, len(text), ids.ctypes.data)
        ids.resize(n, refcheck=False)  # gives the rest of the memory back, without a copy
        return ids

    def encode_batch(self, texts: Sequence[bytes], end: bool) -> tuple[np.ndarray, np.ndarray]:
        text, sizes = b"".join(texts), np.fromiter(map(len, texts), np.int64, len(texts))
        ids, counts = np.empty(len(text) + end * len(sizes), np.uint16), np.empty_like(sizes)
        n = self._lib.rwkv_trie_encode_batch(self._trie, text, sizes.ctypes.data, len(sizes), end, ids.ctypes.data, counts.ctypes.data)
        ids.resize(n, refcheck=False)
        return ids, counts


class Regex:
    """The same by a regular expression: a trie of nested optional groups, about thirty times slower."""

    def __init__(self, tokens: Mapping[int, bytes]):
        self._ids = {token: i for i, token in tokens.items()}

    @functools.cached_property
    def _longest(self) -> re.Pattern[bytes]:  # takes a second to compile
        return re.compile(_longest_match(sorted(self._ids)), re.DOTALL)

    def encode(self, text: bytes) -> np.ndarray:
        return np.array([self._ids[m] for m in self._longest.findall(text)], dtype=np.uint16)

    def encode_batch(self, texts: Sequence[bytes], end: bool) -> tuple[np.ndarray, np.ndarray]:
        each = [np.append(self.encode(text), [np.uint16(END_OF_DOCUMENT)] * end) for text in texts]
        return np.concatenate([np.empty(0, np.uint16), *each]), np.array([len(x) for x in each], dtype=np.int64)


def matcher(tokens: Mapping[int, bytes]) -> Trie | Regex:
    """The compiled form; the other one, and a line on stderr that says so, where that cannot be had."""
    try:
        return Trie(tokens)
    except KernelError as error:
        _say_once(str(error))
        return Regex(tokens)


@functools.cache
def _say_once(reason: str) -> None:
    if multiprocessing.parent_process() is None:  # what a worker would say, its parent has said
        print(f"tokenizer: {reason}; texts are tokenised by Python's re, about 30 times slower", file=sys.stderr)


@functools.cache
def _library() -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    try:
        lib = ctypes.CDLL(str(compile_cpp(SOURCE)))
    except OSError as error:
        raise KernelError(f"{SOURCE.name} cannot be loaded: {error}") from error
    lib.rwkv_trie_new.restype = pointer
    lib.rwkv_trie_new.argtypes = [ctypes.c_char_p, pointer, pointer, number]
    lib.rwkv_trie_free.restype = None
    lib.rwkv_trie_free.argtypes = [pointer]
    lib.rwkv_trie_encode.restype = number
    lib.rwkv_trie_encode.argtypes = [pointer, ctypes.c_char_p, number, pointer]
    lib.rwkv_trie_encode_batch.restype = number
    lib.rwkv_trie_encode_batch.argtypes = [pointer, ctypes.c_char_p, pointer, number, ctypes.c_bool, pointer, pointer]
    return lib


def _longest_match(tokens: list[bytes]) -> bytes:
    """A regular expression that matches the longest of the sorted tokens."""
    out: list[bytes] = []

    def node(lo: int, hi: int, depth: int) -> None:
        whole = len(tokens[lo]) == depth
        children = [list(group) for _, group in itertools.groupby(range(lo + whole, hi), lambda i: tokens[i][depth])]
        if not children:
            return
        out.append(b"(?:")
        for n, group in enumerate(children):
            out.append((b"|" if n else b"") + re.escape(tokens[group[0]][depth : depth + 1]))
            node(group[0], group[-1] + 1, depth + 1)
        out.append(b")?" if whole and depth else b")")

    node(0, len(tokens), 0)
    return b"".join(out)
