"""What the forms of records are read with: keys that may have several names, texts, and what surrounds them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rwkv.config.schema import Column, Keys, Role


class BadRecord(ValueError):
    """Why a record is no document, in words a user understands."""


class Piece(NamedTuple):
    """A text of a record with what surrounds it."""

    prefix: str
    text: str
    suffix: str
    trained: bool


def key_of(record: Mapping[str, Any], keys: Keys) -> str | None:
    """The first of the keys that the record has: with a value, or else with null."""
    empty = None
    for key in keys:
        if record.get(key) is not None:
            return key
        if empty is None and key in record:
            empty = key
    return empty


def value_of(record: Mapping[str, Any], keys: Keys) -> Any:
    for key in keys:
        value = record.get(key)
        if value is not None:
            return value
    return None


def as_text(value: Any, what: str) -> str:
    """Raises BadRecord where it is none; bytes, which some tables hold, are taken for UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    kinds = {bool: "true or false", int: "a number", float: "a number", type(None): "null", list: "a list", dict: "a mapping"}
    raise BadRecord(f"{what} is {kinds.get(type(value), type(value).__name__)}, not text")


def surrounded(form: Column | Role, text: str) -> Piece:
    return Piece(form.prefix, form.lead + text, form.suffix, form.trained)
