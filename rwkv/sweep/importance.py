"""How much of the differences between runs goes with each setting alone.

Kelley's epsilon squared of the ranks of the losses: the share of their variance that lies between the values of a setting (the correlation
ratio), less what chance alone would give; 0 for a setting that says nothing, 1 for one that says all. T. L. Kelley, "An unbiased correlation
ratio measure", PNAS 21 (1935); ranks, as of Kruskal and Wallis (1952), for one loss far off would else be all the variance.
"""

from collections.abc import Sequence
from typing import Any

LEAST = 8  # runs, below which nothing is said
GROUP = 3  # runs that each value, or range of values, has on the average at least
RANGES = 4  # that numbers of many values are put into


def importance(values: Sequence[Any], losses: Sequence[float]) -> float | None:
    """values: of one setting, a word or a number for each run. losses: of the same runs. None if there are too few to say anything."""
    groups = grouped(values)
    n, k = len(losses), len(set(groups))
    if n < LEAST or k < 2 or n < GROUP * k:
        return None
    ranks = ranked(losses)
    mean = sum(ranks) / n
    total = sum((r - mean) ** 2 for r in ranks)
    if not total:
        return 0.0
    within = 0.0
    for group in set(groups):
        mine = [r for r, g in zip(ranks, groups, strict=True) if g == group]
        within += sum((r - sum(mine) / len(mine)) ** 2 for r in mine)
    return max(0.0, 1 - (within / (n - k)) / (total / (n - 1)))


def grouped(values: Sequence[Any]) -> list[Any]:
    """The values themselves; numbers of too many values by ranges with equally many runs."""
    most = max(2, min(RANGES, len(values) // GROUP))
    if len(set(values)) <= max(most, len(values) // GROUP) or not all(isinstance(v, int | float) for v in values):
        return list(values)
    ranks = ranked(values)
    return [int((r - 1) * most / len(values)) for r in ranks]


def ranked(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values have the mean of theirs."""
    order = sorted(values)
    first, last = {}, {}
    for place, value in enumerate(order, 1):
        first.setdefault(value, place)
        last[value] = place
    return [(first[v] + last[v]) / 2 for v in values]
