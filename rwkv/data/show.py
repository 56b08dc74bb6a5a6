"""Records as text, what is trained and what is not told apart: by colour on a terminal, by brackets elsewhere."""

import re
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
from rich.console import Console
from rich.text import Text

from rwkv.config.schema import Data
from rwkv.data import inplace
from rwkv.data.records import BadRecord, parts
from rwkv.data.sources import units
from rwkv.data.tokenise import encoded, why_dropped
from rwkv.data.tokenizer import END_OF_DOCUMENT, Tokenizer

MOST = 4000  # tokens shown of a record
TRAINED, UNTRAINED, ID, END = "green", "dim", "cyan", "magenta"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # would act on the terminal


def show(data: Data, tokenizer: Tokenizer, count: int, ids: bool) -> None:
    """Print the first `count` records after data.first, without preparing anything."""
    console = Console(highlight=False, soft_wrap=True)
    colour = console.is_terminal and not console.no_color
    key = Text.assemble(("trained", TRAINED), "  ", ("not trained", UNTRAINED)) if colour else Text("[[not trained]]")
    console.print(Text.assemble("key: ", key, f"   <end> is token {END_OF_DOCUMENT}"))
    shown = 0
    for title, tokens, mask in islice(records(data, tokenizer), min(count, data.limit or count)):
        shown += 1
        console.print(Text(f"\n--- {shown}: {title}", style="bold"))
        if tokens is not None:
            console.print(body(tokens[:MOST], mask[:MOST], tokenizer, ids, colour))
            if len(tokens) > MOST:
                console.print(f"... ({len(tokens) - MOST:,} more tokens)")


def records(data: Data, tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray | None, np.ndarray | None]]:
    """(title, ids, mask) of each record; ids are None where it is none."""
    if data.kind in inplace.KINDS:
        place, blocks = inplace.open_tokens(data)
        tokens, trained = inplace.mapped(place)
        spans = ((int(start), int(size)) for starts, sizes in blocks for start, size in zip(starts, sizes, strict=True))
        for i, (start, size) in enumerate(islice(spans, data.first, None)):
            ids = np.asarray(tokens[start : start + size])
            mask = np.ones(size, bool) if trained is None else np.asarray(trained[start : start + size])
            yield _title(f"{place.path}, document {data.first + i}", mask), ids, mask
        return
    for found in islice(chain.from_iterable(unit.read() for unit in units(data)), data.first, None):
        try:
            pieces = None if found.bad else parts(found.record, data.record)
        except BadRecord as error:
            yield f"{found.where}: no document: {error}", None, None
            continue
        if pieces is None:
            yield f"{found.where}: no document: {found.bad}", None, None
            continue
        doc = encoded([pieces], tokenizer, data.record.untrained_tokens)
        mask = np.ones(len(doc.ids), bool) if doc.mask is None else doc.mask
        dropped = "".join(f", dropped: {reason}" for reason in why_dropped(doc, data))
        yield _title(found.where, mask) + dropped, doc.ids, mask


def _title(where: str, mask: np.ndarray) -> str:
    return f"{where}   {len(mask):,} tokens, {int(mask[1:].sum()):,} trained"


def body(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer, ids: bool, colour: bool) -> Text:
    """The text of some tokens; with `ids` the id behind each of them."""
    out = Text()
    cuts = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(tokens)]
    for begin, end in zip(cuts, cuts[1:], strict=False):
        trained = bool(mask[begin])
        run = tokens[begin:end].tolist()
        out.append("" if colour or trained else "[[")
        for piece in [[i] for i in run] if ids else _without_ends(run):
            is_end = piece == [END_OF_DOCUMENT]
            text = "<end>" if is_end else visible(tokenizer.decode(piece))
            out.append(text, style=(END if is_end else TRAINED) if trained else UNTRAINED)
            if ids:
                out.append(f"<{piece[0]}>", style=ID)
        out.append("" if colour or trained else "]]")
    return out


def _without_ends(run: list[int]) -> Iterator[list[int]]:
    """Stretches of tokens, each end of a document by itself."""
    begin = 0
    for i, token in enumerate(run):
        if token == END_OF_DOCUMENT:
            yield from ([run[begin:i]] if i > begin else [])
            yield [token]
            begin = i + 1
    if begin < len(run):
        yield run[begin:]


def visible(text: bytes) -> str:
    """What is no text in it, or would move the cursor, as escapes."""
    return CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text.decode("utf-8", "backslashreplace"))
