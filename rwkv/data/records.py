"""A record becomes parts of text, each trained or not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv.config.schema import Keys, Record
from rwkv.data.chat import chat_pieces
from rwkv.data.pieces import BadRecord, Piece, as_text, its_keys, key_of, needed_key, surrounded, value_of

__all__ = ["BadRecord", "Part", "columns_of", "parts"]


@dataclass(frozen=True)
class Part:
    """Text that is tokenised by itself, and whether its tokens are targets. The end token is trained if the last part is."""

    text: bytes
    trained: bool


def parts(record: bytes | Mapping[str, Any] | list[Any], spec: Record) -> list[Part]:
    """The parts of a record in order, no two neighbours trained alike: what a prompt holds is tokenised as one text, as when generating.

    Raises:
        BadRecord: it has not the form that `spec` describes, or nothing of it is trained.
    """
    if isinstance(record, bytes):
        return [Part(record, True)]
    if isinstance(record, list) and not (spec.kind in ("auto", "chat") and spec.chat.key is None):
        raise BadRecord(
            "a list, not a mapping of keys to values (a file that is one JSON array ends in .json; of a list of turns data.record.chat.key is null)"
        )
    form = _form(record, spec) if spec.kind == "auto" else spec.kind
    if form == "text":
        text = _text(record, spec.text)
        if not text or text.isspace():
            raise BadRecord("empty")
        return [Part(_encoded(text), True)]
    if form == "prompt":
        pieces = [Piece("", _text(record, spec.prompt), "", spec.train_prompt), Piece("", _text(record, spec.completion), "", True)]
    elif form == "columns":
        pieces = _columns(record, spec)
    else:
        pieces = chat_pieces(record, spec.chat)
    return _joined(pieces, spec.markup)


def plain_texts(records: Iterable[Any], spec: Record) -> list[bytes] | None:
    """The texts of records that are nothing but text, as `parts` would give them, at a fifth of its time; None where one of them is not."""
    if spec.kind not in ("auto", "text"):
        return None
    telling = spec.telling if spec.kind == "auto" else frozenset()
    texts = []
    for record in records:
        text = value_of(record, spec.text) if isinstance(record, dict) and telling.isdisjoint(record) else None
        if not isinstance(text, str) or not text or text.isspace():
            return None
        texts.append(text.encode())
    return texts


def columns_of(spec: Record, names: Sequence[str]) -> list[str]:
    """Those of a table's columns that `parts` may look at, in the table's order."""
    forms = {
        "text": spec.text,
        "prompt": (*spec.prompt, *spec.completion),
        "columns": tuple(key for column in spec.columns for key in column.key),
        "chat": spec.chat.key or (),
    }
    if spec.chat.key is None and spec.kind == "chat":
        return list(names)
    wanted = {key for form, keys in forms.items() if spec.kind in ("auto", form) for key in keys}
    return [name for name in names if name in wanted]


def _form(record: Mapping[str, Any] | list[Any], spec: Record) -> str:
    """See the docstring of `schema.Record`."""
    if isinstance(record, list):
        return "chat"
    if not spec.telling.isdisjoint(record):
        if spec.chat.key and isinstance(value_of(record, spec.chat.key), list | Mapping):
            return "chat"
        if sum(value_of(record, column.key) is not None for column in spec.columns) > 1:
            return "columns"
        if value_of(record, spec.prompt) is not None and value_of(record, spec.completion) is not None:
            return "prompt"
    if key_of(record, spec.text) is not None:
        return "text"
    raise BadRecord(f"of no known form: {its_keys(record)}; data.record says which to read, as data.record.text=KEY")


def _text(record: Mapping[str, Any], keys: Keys) -> str:
    key = needed_key(record, keys)
    return as_text(record[key], f"its {key}")


def _columns(record: Mapping[str, Any], spec: Record) -> list[Piece]:
    out: list[Piece] = []
    for column in spec.columns:
        value = value_of(record, column.key)
        text = "" if value is None else as_text(value, f"its {key_of(record, column.key)}")
        if text:
            out.append(surrounded(column, text)._replace(prefix=(spec.separator if out else "") + column.prefix))
    if not out:
        keys = ", ".join("/".join(column.key) for column in spec.columns)
        raise BadRecord(f"none of the columns {keys} holds text: {its_keys(record)}")
    return out


def _joined(pieces: list[Piece], markup: str) -> list[Part]:
    runs: list[tuple[bool, list[str]]] = []
    for piece in pieces:
        prefix, suffix = {"own": (False, piece.trained), "trained": (True, True), "untrained": (False, False)}[markup]
        for text, trained in ((piece.prefix, prefix), (piece.text, piece.trained), (piece.suffix, suffix)):
            if text and runs and runs[-1][0] == trained:
                runs[-1][1].append(text)
            elif text:
                runs.append((trained, [text]))
    if all(not piece.text or piece.text.isspace() for piece in pieces):
        raise BadRecord("empty")
    if not any(piece.trained and piece.text for piece in pieces):
        raise BadRecord("nothing of it is trained")
    return [Part(_encoded("".join(texts)), trained) for trained, texts in runs]


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadRecord("not text: it holds half a character (a lone surrogate, or bytes that are not UTF-8)") from None
