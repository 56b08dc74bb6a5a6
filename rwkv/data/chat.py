"""Conversations: the turns of a record, each with what its speaker's role puts around it."""

from collections.abc import Mapping
from typing import Any

from rwkv.config.schema import Chat
from rwkv.data.pieces import BadRecord, Piece, as_text, its_keys, key_of, needed_key, surrounded, value_of


def chat_pieces(record: Mapping[str, Any] | list[Any], chat: Chat) -> list[Piece]:
    """The turns in order; empty ones are left out.

    Raises:
        BadRecord: it has no list of turns, a turn has another form, or its speaker no role.
    """
    roles = {name: role for main, role in chat.roles.items() for name in (main, *role.aliases)}
    out: list[Piece] = []
    for number, turn in enumerate(_turns(record, chat), 1):
        if not isinstance(turn, Mapping):
            raise BadRecord(f"turn {number} is no mapping of keys to values")
        for speaker, before, said in _said(turn, chat, number):
            role = roles.get(speaker, chat.other)
            if role is None:
                raise BadRecord(f"turn {number} is by {speaker}, which is none of the roles {', '.join(roles)} (data.record.chat.other can write any)")
            said = said.strip() if chat.trim else said
            if said:
                piece = surrounded(role, said) if before is None else surrounded(role, said)._replace(prefix=before, text=said)
                out.append(piece._replace(prefix=piece.prefix.replace("{role}", speaker), suffix=piece.suffix.replace("{role}", speaker)))
    if out and chat.end:
        out[-1] = out[-1]._replace(suffix=out[-1].suffix + chat.end)
    return out


def _turns(record: Mapping[str, Any] | list[Any], chat: Chat) -> list[Any]:
    if chat.key is None:
        if isinstance(record, list):
            return record
        raise BadRecord("a mapping of keys to values, not a list of turns (data.record.chat.key names the key of the list)")
    key = needed_key(record, chat.key)
    turns = record[key]
    if isinstance(turns, Mapping):  # tables may hold lists of mappings as mappings of lists
        columns = [value for value in turns.values() if isinstance(value, list)]
        if not columns or len(columns) < len(turns) or len({len(column) for column in columns}) != 1:
            raise BadRecord(f"its {key} is a mapping, not a list of turns")
        return [dict(zip(turns, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(turns, list):
        raise BadRecord(f"its {key} is no list of turns")
    return turns


def _said(turn: Mapping[str, Any], chat: Chat, number: int) -> list[tuple[str, str | None, str]]:
    """(speaker, what precedes the text instead of the role's prefix and lead or None, text) of what is said in a turn."""
    if chat.sender is None:
        return [(str(key), None, as_text(value, f"turn {number}: its {key}")) for key, value in turn.items() if value is not None]
    speaker = value_of(turn, chat.sender)
    if not isinstance(speaker, str):
        raise BadRecord(f"turn {number} does not say who speaks: no text under {' or '.join(chat.sender)}; {its_keys(turn)}")
    if turn.get("tool_calls"):
        raise BadRecord(f"turn {number} calls a tool: there is no text for that")
    if key_of(turn, chat.content) is None:
        raise BadRecord(f"turn {number} says nothing: no key {' or '.join(chat.content)}; {its_keys(turn)}")
    out = [(speaker, None, _content(value_of(turn, chat.content), number))]
    return out + [(speaker, before, as_text(turn[key], f"turn {number}: its {key}")) for key, before in chat.also.items() if turn.get(key) is not None]


def _content(value: Any, number: int) -> str:
    """Text, or a list of texts as today's chat sets have it: [{"type": "text", "text": ...}]."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return as_text(value, f"turn {number}: what is said")
    other = [item for item in value if not isinstance(item, str) and not (isinstance(item, Mapping) and isinstance(item.get("text"), str))]
    if other:
        kind = other[0].get("type", "something else") if isinstance(other[0], Mapping) else type(other[0]).__name__
        raise BadRecord(f"turn {number} holds {kind}, not text alone")
    return "".join(item if isinstance(item, str) else item["text"] for item in value)
