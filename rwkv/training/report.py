"""report.html: one self-contained page of a run. Opens without network or server."""

import html
import json
import math
from collections.abc import Sequence

from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import flatten
from rwkv.config.schema import TrainConfig
from rwkv.words import duration

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 320, 52, 30, 34
POINTS = 600  # of a curve; longer ones are averaged in groups
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em;margin-bottom:0}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}
td,th{padding:.15em 1em .15em 0;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f5f5f2;padding:1em;overflow-x:auto;white-space:pre-wrap}.note{color:#666}
details summary{cursor:pointer}
"""


def write_report(folder: RunFolder, cfg: TrainConfig, summary: dict, records: list[dict], sample: str) -> None:
    """Write the page from what the run has recorded."""
    env = json.loads(folder.env.read_text())
    train = [(r["tokens"], r["train/loss"]) for r in records if "train/loss" in r]
    val = [(r["tokens"], r["val/loss"]) for r in records if "val/loss" in r]
    speed = [(r["tokens"], r["tokens_per_sec"]) for r in records if r.get("tokens_per_sec")]
    norm = [(r["tokens"], r["grad_norm"]) for r in records if "grad_norm" in r]
    results = {
        "training loss": figure(summary["train_loss"]),
        "validation loss": figure(summary["val_loss"]),
        "unigram entropy of the text": f"{summary['unigram']:.4f}",
        "tokens": f"{summary['tokens']:,}",
        "optimizer steps": f"{summary['step']:,}",
        "time": duration(summary["seconds"]),
        "tokens a second (median)": f"{summary['tokens_per_sec'] or 0:,.0f}",
    }
    if summary["verdict"]:
        results["verdict"] = summary["verdict"]
    if cfg.expect and summary["verdict"]:
        results["expected"] = f"training {cfg.expect.train_loss}, validation {cfg.expect.val_loss}, +- {cfg.expect.tolerance}"
    baseline = ("unigram", summary["unigram"])
    parts = [
        f"<h1>{html.escape(folder.path.name)}</h1><p class=note>{html.escape(env['device'])}</p>",
        table(results, numbers=True),
        "<h2>Loss (nats a token) over tokens</h2>",
        plot([("training", "#7fa3cc", train), ("validation", "#c03", val)], baseline),
        "<h2>What it writes</h2><pre>" + html.escape(sample) + "</pre>" if sample else "",
        "<h2>Throughput (tokens a second)</h2>" + plot([("tokens/s", "#5a8", speed)]) if speed else "",
        "<h2>Gradient norm</h2>" + plot([("norm", "#a85", norm)]) if norm else "",
        "<details><summary>Settings</summary>" + table({k: str(v) for k, v in flatten(cfg)}) + "</details>",
        "<details><summary>Environment</summary>" + table({k: v if isinstance(v, str) else json.dumps(v) for k, v in env.items()}) + "</details>",
    ]
    body = "\n".join(p for p in parts if p)
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(folder.path.name)}</title><style>{STYLE}</style>{body}</html>"
    folder.report.write_text(page)


def figure(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def table(rows: dict[str, str], numbers: bool = False) -> str:
    kind = " class=n" if numbers else ""
    return "<table>" + "".join(f"<tr><td>{html.escape(k)}</td><td{kind}>{html.escape(v)}</td></tr>" for k, v in rows.items()) + "</table>"


Curve = Sequence[tuple[float, float]]


def plot(curves: list[tuple[str, str, Curve]], baseline: tuple[str, float] | None = None) -> str:
    """An SVG, good in a page or as a file, of (name, colour, [(x, y)]) curves, with a dashed level to compare with."""
    curves = [(name, colour, thin(points)) for name, colour, points in curves if points]
    xs = [x for _, _, points in curves for x, _ in points]
    ys = [y for _, _, points in curves for _, y in points] + ([baseline[1]] if baseline else [])
    if not xs:
        return ""
    x1 = max(xs) or 1
    y0, y1 = min(ys), max(ys)
    pad = 0.05 * ((y1 - y0) or abs(y1) or 1)
    y0, y1 = max(0, y0 - pad), y1 + pad

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / x1 * (WIDTH - LEFT - 16), TOP + (y1 - y) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)

    font = 'font-family="system-ui,sans-serif" font-size="12" fill="#555" style="background:#fff"'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" {font}>']
    for y in ticks(y0, y1):
        py = at(0, y)[1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{py:.1f}" y2="{py:.1f}" stroke="#eee"/>')
        out.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in ticks(0, x1):
        out.append(f'<text x="{at(x, 0)[0]:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{short(x)}</text>')
    if baseline:
        _, py = at(0, baseline[1])
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{py:.1f}" y2="{py:.1f}" stroke="#888" stroke-dasharray="4 4"/>')
        out.append(f'<text x="{LEFT + 8}" y="{py - 6:.1f}">{html.escape(baseline[0])} {baseline[1]:.2f}</text>')
    legend = []
    for name, colour, points in curves:
        places = [at(x, y) for x, y in points]
        if len(places) == 1:
            out.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="4" fill="{colour}"/>')
        else:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        legend.append(f'<tspan fill="{colour}" dx="12">{html.escape(name)} {short(points[-1][1])}</tspan>')
    return "".join(out) + f'<text x="{WIDTH - 16}" y="18" text-anchor="end">{"".join(legend)}</text></svg>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high: four to nine of them."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (5, 2, 1) if (high - low) / (step * m) >= 4)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def thin(points: Curve) -> Curve:
    """At most POINTS points, each the mean of its group."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def short(x: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= scale:
            return f"{x / scale:.3g}{unit}"
    return f"{x:.3g}"
