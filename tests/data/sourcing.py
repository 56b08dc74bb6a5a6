"""What the tests of sources share."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from rwkv.config.check import check
from rwkv.config.compose import load
from rwkv.config.schema import Data
from rwkv.data.records import BadRecord, Part, parts
from rwkv.data.sources import Batched, units


def data_of(*overrides: str) -> Data:
    """Composed once for any number of paths, which takes a quarter of a second."""
    path = [o.removeprefix("data.path=") for o in overrides if o.startswith("data.path=/")]
    if len(path) == 1:
        return dataclasses.replace(_composed(*(o if not o.startswith("data.path=") else "data.path=x" for o in overrides)), path=path[0])
    return _composed(*overrides)


@functools.lru_cache(maxsize=64)
def _composed(*overrides: str) -> Data:
    cfg = load(list(overrides))
    check(cfg)
    return cfg.data


def documents(*overrides: str, validation: bool = False) -> list[list[Part] | str]:
    """Of each record its parts, or "where: what is wrong": read one by one, which gives what reading many at a time does."""
    data = data_of(*overrides)
    shares = units(data, validation)
    single = [outcome(found, data.record) for unit in shares for found in unit.read()]
    assert [out for unit in shares for out in in_batches(unit, data.record)] == single
    return single


def in_batches(unit, record) -> Iterator[list[Part] | str]:
    for found in unit.batches(record) if isinstance(unit, Batched) else unit.read():
        yield from ([Part(text, True)] for text in found) if isinstance(found, list) else [outcome(found, record)]


def outcome(found, record) -> list[Part] | str:
    if found.bad:
        assert found.record is None
        return f"{found.where}: {found.bad}"
    try:
        return parts(found.record, record)
    except BadRecord as error:
        return f"{found.where}: {error}"


def texts(*overrides: str, validation: bool = False) -> list[bytes | str]:
    """The same, the parts joined."""
    return [out if isinstance(out, str) else b"".join(part.text for part in out) for out in documents(*overrides, validation=validation)]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
