"""The drawings of a sweep's page: curves laid over each other, and a line a run through its settings to its loss."""

import html
import math
from collections.abc import Callable, Sequence

from rwkv.page import FONT, Axis, Curve, grid, line, short, thin
from rwkv.sweep.results import Result, number_of

COLOURS = ("#26306f", "#2a6fa8", "#2aa198", "#7cb342", "#e0a100", "#d9663c")  # from the best run to the worst
UNRANKED = "#b5b5b5"
POINTS = 12_000  # of one chart; 160 of a curve at most
MOST = 200  # curves of a chart; lines are cheaper


def colours(results: Sequence[Result]) -> dict[int, str]:
    """Run -> its colour, by its place among the losses reached."""
    ranked = sorted((r for r in results if r.best is not None), key=lambda r: r.best)
    found = {r.number: UNRANKED for r in results}
    return found | {r.number: _between(i / max(1, len(ranked) - 1)) for i, r in enumerate(ranked)}


def _between(share: float) -> str:
    place = share * (len(COLOURS) - 1)
    i = min(int(place), len(COLOURS) - 2)
    ends = [[int(c[j : j + 2], 16) for j in (1, 3, 5)] for c in COLOURS[i : i + 2]]
    return "#" + "".join(f"{round(a + (b - a) * (place - i)):02x}" for a, b in zip(*ends, strict=True))


def overlay(results: Sequence[Result], metric: str, colour: dict[int, str], title: str) -> str:
    """The curves of a metric over tokens, four times: each axis linear and logarithmic, of which one is shown at a time. Empty without any."""
    ranked = sorted(results, key=lambda r: r.best if r.best is not None else math.inf)
    most = max(24, min(160, POINTS // min(max(len(results), 1), MOST)))
    curves = [(r, thin(points, most)) for r in ranked if (points := [p for p in r.curve(metric) if p[0] > 0 and p[1] > 0])][:MOST]
    if not curves:
        return ""
    left_out = sum(bool(r.curve(metric)) for r in results) - len(curves)
    told = f"<span class=note> the {MOST} best of {MOST + left_out}</span>" if left_out > 0 else ""
    drawn = "".join(_overlay(curves[::-1], colour, log_x, log_y) for log_x in (False, True) for log_y in (False, True))
    return f"<figure class=curves><figcaption>{html.escape(title)}{told}</figcaption>{drawn}</figure>"


def _overlay(curves: list[tuple[Result, Curve]], colour: dict[int, str], log_x: bool, log_y: bool) -> str:
    width, height = 560, 320
    xs = sorted(x for _, points in curves for x, _ in points)
    ys = sorted(y for _, points in curves for _, y in points)
    low, high = ys[0], ys[-1] if log_y else ys[int(0.98 * (len(ys) - 1))]  # the first steps, or a run far off, would be all there is to see
    pad = 0.04 * ((high - low) or high)
    x = Axis(xs[0] if log_x else 0, xs[-1], 46, width - 14, log_x)
    y = Axis(low * 0.98 if log_y else max(0, low - pad), high * 1.02 if log_y else high + pad, height - 30, 10, log_y)
    axes = " ".join(f'data-{name}="{a.start:g},{a.end:g},{a.low:g},{a.high:g},{int(a.log)}"' for name, a in (("x", x), ("y", y)))
    kind = f'class="lines x{int(log_x)} y{int(log_y)}"'
    left, top, wide, high = x.start - 4, y.end - 4, x.end - x.start + 8, y.start - y.end + 8  # what is outside is not drawn
    inside = f'<svg x="{left}" y="{top}" width="{wide}" height="{high}" viewBox="{left} {top} {wide} {high}">'
    drawn = "".join(line(points, x, y, colour[r.number], f' data-run="{r.number}"') for r, points in curves)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {kind} {axes} {FONT}>{grid(x, y)}{inside}{drawn}</svg></svg>'


def parallel(results: Sequence[Result], keys: Sequence[str], colour: dict[int, str], loss: str) -> str:
    """Parallel coordinates (Inselberg 1985): an axis a setting, the last the best loss; a line a run that has one."""
    shown = sorted((r for r in results if r.best is not None), key=lambda r: -r.best)
    if not shown:
        return ""
    width, height, top, bottom = 1160, 340, 44, 312
    columns = [*keys, f"best {loss} loss"]
    gap = (width - 200) / max(1, len(columns) - 1)
    places, out = [], []
    for i, key in enumerate(columns):
        at = 100 + i * gap
        values = [r.best if i == len(keys) else r.values.get(key) for r in shown]
        place, marks = scale(values, bottom, top, even=0 if i == len(keys) else 6)
        places.append([(at, place(v)) for v in values])
        out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}" stroke="#999"/>')
        side, dx = ("start", 8) if i == len(keys) else ("end", -8)
        out += [f'<text x="{at + dx:.1f}" y="{y + 4:.1f}" text-anchor="{side}" class=tick>{html.escape(_clip(text))}</text>' for text, y in marks]
        out.append(f'<text x="{at:.1f}" y="20" text-anchor="middle" fill="#222" font-weight="600">{html.escape(_clip(key, 28))}</text>')
    lines = []
    for r, line_of in zip(shown, zip(*places, strict=True), strict=True):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line_of)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour[r.number]}" stroke-width="1.8" data-run="{r.number}"/>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class=lines {FONT}>{"".join([*lines, *out])}</svg>'


def scale(values: Sequence, bottom: float, top: float, even: int = 6) -> tuple[Callable, list[tuple[str, float]]]:
    """Where values are on an axis, and the marks on it: words, and a few numbers, one above the other; more in proportion, or by magnitude."""
    numbers = [number_of(v) for v in values]
    wordy = any(n is None for n in numbers)
    if wordy or 1 < len(set(numbers)) <= even:
        words = [text for _, text in sorted({(0 if wordy else n, str(v)) for n, v in zip(numbers, values, strict=True)})]
        step = (bottom - top) / max(1, len(words) - 1)
        level = {w: bottom - i * step for i, w in enumerate(words)} if len(words) > 1 else {words[0]: (top + bottom) / 2}
        every = -(-len(words) // 16)
        return lambda v: level[str(v)], [(w, level[w]) for w in words[::every]]
    low, high = min(numbers), max(numbers)
    axis = Axis(low, high, bottom, top, log=low > 0 and high / low >= 8) if high > low else Axis(low - 1, high + 1, bottom, top)
    few = sorted(set(numbers))
    marks = few if len(few) <= 6 else axis.ticks()
    return lambda v: axis.at(number_of(v)), _apart([(plain(m), axis.at(m)) for m in marks])


def _apart(marks: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Those marks that do not run into the one before."""
    kept: list[tuple[str, float]] = []
    for text, y in marks:
        if not kept or abs(kept[-1][1] - y) >= 12:
            kept.append((text, y))
    return kept


def plain(number: float) -> str:
    """4 significant digits, large ones with a unit."""
    return short(number) if abs(number) >= 10_000 else f"{number:.4g}"


def _clip(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
