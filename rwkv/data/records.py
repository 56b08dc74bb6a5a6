"""A record becomes parts of text, each trained or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwkv.config.schema import Record


class BadRecord(ValueError):
    """Why a record is no document, in words a user understands."""


@dataclass(frozen=True)
class Part:
    """Text that is tokenised by itself, and whether its tokens are targets. The end token is trained if the last part is."""

    text: bytes
    trained: bool


def parts(record: bytes | Mapping[str, Any], spec: Record) -> list[Part]:
    """The parts of a record in order. Raises BadRecord if it has not the form that `spec` describes."""
    if isinstance(record, bytes):
        return [Part(record, True)]
    text = record.get(spec.text)
    if not isinstance(text, str):
        raise BadRecord(f"its key {spec.text} is {type(text).__name__}, not text")
    return [Part(text.encode(), True)]
