"""The table at the end of a preparation."""

from pathlib import Path

import numpy as np

from rwkv.data.store import About

BAR = 40  # characters of the longest bar


def summary(title: str, about: About, folder: Path) -> None:
    """Print counts, lengths, what was dropped and why, and where the store lies."""
    place = about.place
    own = place.path == "tokens.bin"
    lines = [
        f"{title}",
        f"documents {about.documents:,}",
        f"tokens    {about.tokens:,} ({np.dtype(place.dtype).name}), {about.tokens / about.documents:,.1f} a document, the longest {about.longest:,}",
        f"trained   {about.trained:,} ({about.trained / about.tokens:.1%}; the first token of a document never is)",
        f"lengths   {'tokens':>23}  documents",
        *_histogram(about.histogram),
        f"dropped   {sum(about.dropped.values()):,}",
        *(f"  {n:>12,}  {reason}" for reason, n in about.dropped.items()),
        *(f"      {where}: {reason}" for where, reason in about.bad),
        f"store     {folder}" + ("" if own else f", the index of {place.path}, which is read in place"),
        *([f"          RWKV-LM trains on it with --data_file {folder}/tokens --data_type binidx"] if own else []),
    ]
    print("\n".join(lines), flush=True)


def _histogram(counts: list[int]) -> list[str]:
    first = next(i for i, n in enumerate(counts) if n)
    most = max(counts)
    return [
        f"          {2**i:>10,} - {2 ** (i + 1) - 1:>10,}  {n:>9,} {'#' * -(-n * BAR // most)}".rstrip() for i, n in enumerate(counts) if i >= first
    ]
