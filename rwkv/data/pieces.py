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
    raise BadRecord(f"{what} is {kind_of(value)}, not text")


def kind_of(value: Any) -> str:
    """In words; of what JSON does not have, the name of its type."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null", list: "a list", dict: "a mapping"}
    return kinds.get(type(value), type(value).__name__)


def needed_key(record: Mapping[str, Any], keys: Keys) -> str:
    """The key that `key_of` finds. Raises BadRecord if there is none."""
    key = key_of(record, keys)
    if key is None:
        raise BadRecord(f"no key {' or '.join(keys)}: {its_keys(record)}")
    return key


def its_keys(record: Mapping[str, Any]) -> str:
    return f"its keys are {', '.join(map(str, record)) or 'none'}"


def surrounded(form: Column | Role, text: str) -> Piece:
    return Piece(form.prefix, form.lead + text, form.suffix, form.trained)
