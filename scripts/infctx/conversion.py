"""What has been made of an infctx configuration so far: our settings, and what was not taken over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass
class Conversion:
    """source: the infctx keys, dotted. settings: ours, dotted; a group's option is under "/group". dropped: key -> why. notes: of changed meaning."""

    source: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, **settings: Any) -> None:
        """Keys with __ for dots; a leading underscore for the slash of a group."""
        self.settings |= {("/" + k[1:] if k[0] == "_" else k.replace("__", ".")): v for k, v in settings.items()}

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def get(self, key: str, default: Any = None) -> Any:
        value = self.source.get(key)
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        """YAML reads 6e-4 as text."""
        return float(self.get(key, default))


Convert = Callable[[Conversion, str, Any], None]


class Row(NamedTuple):
    """A key of the infctx trainer. here: ours, empty if there is none. about: how it is taken over, or why not.

    neutral: values that say the same as leaving the key out. convert: None where nothing is taken over.
    """

    key: str
    here: str
    about: str
    convert: Convert | None = None
    neutral: tuple = (None,)


def copied(here: str, kind: Callable[[Any], Any] = lambda x: x) -> Convert:
    return lambda c, key, value: c.settings.update({here: kind(value)})


def taken(*values: Any) -> tuple:
    """Neutral values: those, and null."""
    return (None, *values)
