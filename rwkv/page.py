"""What the pages of runs and of sweeps share: their looks, tables, and curves as SVG. They open without network or server."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[float, float]]

FONT = 'font-family="system-ui,sans-serif" font-size="12" fill="#555" style="background:#fff"'
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em;margin-bottom:0}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}
td,th{padding:.15em 1em .15em 0;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f5f5f2;padding:1em;overflow-x:auto;white-space:pre-wrap}.note{color:#666}
details summary{cursor:pointer}
"""


def document(title: str, parts: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole page in one text."""
    end = f"<script>{script}</script>" if script else ""
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    return f"<!doctype html><html lang=en>{head}{chr(10).join(p for p in parts if p)}{end}</html>"


def table(rows: dict[str, str], numbers: bool = False) -> str:
    kind = " class=n" if numbers else ""
    return "<table>" + "".join(f"<tr><td>{html.escape(k)}</td><td{kind}>{html.escape(v)}</td></tr>" for k, v in rows.items()) + "</table>"


def figure(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def short(x: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= scale:
            return f"{x / scale:.3g}{unit}"
    return f"{x:.3g}"


@dataclass(frozen=True)
class Axis:
    """Values from low to high, in pixels from start to end; low is above 0 where it is logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers in it, a handful of them."""
        if not self.log or self.high < 4 * self.low:
            return ticks(self.low, self.high) if self.high > self.low else [self.low]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = next(s for s in ((1, 2, 5), (1, 3), (1,)) if len(s) * len(decades) < 10 or s == (1,))
        every = -(-len(decades) // 9)
        return [v for d in decades[::every] for s in steps if self.low <= (v := s * 10.0**d) <= self.high * 1.0001]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high: four to nine of them."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (5, 2, 1) if (high - low) / (step * m) >= 4)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def grid(x: Axis, y: Axis) -> str:
    """Lines and numbers of both axes; y.start is the bottom."""
    out = []
    for value in y.ticks():
        out.append(f'<line x1="{x.start:g}" x2="{x.end + 6:g}" y1="{y.at(value):.1f}" y2="{y.at(value):.1f}" stroke="#eee"/>')
        out.append(f'<text x="{x.start - 6:g}" y="{y.at(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in x.ticks():
        out.append(f'<text x="{x.at(value):.1f}" y="{y.start + 20:g}" text-anchor="middle">{short(value)}</text>')
    return "".join(out)


def line(points: Curve, x: Axis, y: Axis, colour: str, more: str = "") -> str:
    """A curve as SVG; a point, if it is only one."""
    places = [(x.at(a), y.at(b)) for a, b in points]
    if len(places) == 1:
        return f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="4" fill="{colour}"{more}/>'
    return f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}" fill="none" stroke="{colour}" stroke-width="1.6"{more}/>'


def plot(curves: list[tuple[str, str, Curve]], baseline: tuple[str, float] | None = None) -> str:
    """An SVG, good in a page or as a file, of (name, colour, [(x, y)]) curves, with a dashed level to compare with."""
    width, height = 760, 320
    curves = [(name, colour, thin(points)) for name, colour, points in curves if points]
    xs = [x for _, _, points in curves for x, _ in points]
    ys = [y for _, _, points in curves for _, y in points] + ([baseline[1]] if baseline else [])
    if not xs:
        return ""
    low, high = min(ys), max(ys)
    pad = 0.05 * ((high - low) or abs(high) or 1)
    x, y = Axis(0, max(xs) or 1, 52, width - 16), Axis(max(0, low - pad), high + pad, height - 34, 30)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="100%" role="img" {FONT}>', grid(x, y)]
    if baseline:
        level = y.at(baseline[1])
        out.append(f'<line x1="{x.start}" x2="{x.end + 6}" y1="{level:.1f}" y2="{level:.1f}" stroke="#888" stroke-dasharray="4 4"/>')
        out.append(f'<text x="{x.start + 8}" y="{level - 6:.1f}">{html.escape(baseline[0])} {baseline[1]:.2f}</text>')
    out += [line(points, x, y, colour) for _, colour, points in curves]
    legend = [f'<tspan fill="{colour}" dx="12">{html.escape(name)} {short(points[-1][1])}</tspan>' for name, colour, points in curves]
    return "".join(out) + f'<text x="{x.end}" y="18" text-anchor="end">{"".join(legend)}</text></svg>'


def thin(points: Curve, most: int = 600) -> Curve:
    """At most so many points, each the mean of its group."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]
