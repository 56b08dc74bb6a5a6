"""report.html of a sweep, or of runs laid beside each other: one self-contained page. Opens without network or server."""

import html
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rwkv.page import document, figure, short
from rwkv.sweep import charts
from rwkv.sweep.importance import GROUP, LEAST, importance
from rwkv.sweep.ledger import Sweep
from rwkv.sweep.results import Result, number_of, of_sweep, rank
from rwkv.words import count, duration

FILE = "report.html"
CURVES = {"val/loss": "Validation loss", "train/loss": "Training loss", "tokens_per_sec": "Tokens a second", "grad_norm": "Gradient norm"}
FEW = 8  # runs that a legend names one by one
HERE = Path(__file__).parent


def write_sweep(sweep: Sweep) -> Path:
    """Write the page of a sweep into its folder, or write it anew. Raises CheckpointError if it has no runs."""
    about = sweep.about
    called = time.strftime("%F %T", time.localtime(about["called"]))
    command = html.escape(shlex.join(["python", "-m", "rwkv.train", *about["command"]]))
    target = sweep.path / FILE
    write(of_sweep(sweep), target, sweep.path.name, [f"{about['sweeper']}, {about['launcher']}, {called}", f"<code>{command}</code>"])
    return target


def write(results: list[Result], target: Path, title: str, facts: Sequence[str] = ()) -> None:
    """Write a page of these runs; links in it are relative to its place."""
    loss = rank(results)
    colour = charts.colours(results)
    keys = [k for k in dict.fromkeys(k for r in results for k in r.values)]
    differing = [k for k in keys if len({str(r.values.get(k)) for r in results}) > 1]
    curves = [charts.overlay(results, metric, colour, name) for metric, name in CURVES.items()]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p class=facts>{fact}</p>" for fact in [summary(results, loss), *facts]),
        chooser(results, colour, loss) if any(curves) else "<p class=note>No run has recorded a step yet.</p>",
        f"<div class=charts>{''.join(curves)}</div>",
        "<h2>Runs</h2>",
        f"<div class=scroll>{runs(results, keys, colour, loss, target.parent)}</div>",
        unfinished(results),
        "<h2>Settings to loss</h2>" + charts.parallel(results, differing, colour, loss) if differing and any(r.best is not None for r in results) else "",
        f"<h2>What matters</h2>{bars(results, differing, loss)}" if differing else "",
        f"<h2>Environment</h2>{environment(results)}",
        "<div id=tip></div>",
    ]
    page = document(title, parts, (HERE / "page.css").read_text(), (HERE / "page.js").read_text())
    temp = target.with_name(f".{target.name}.{os.getpid()}")
    temp.write_text(page)
    temp.replace(target)


def summary(results: Sequence[Result], loss: str) -> str:
    """How many runs there are in which state, and which is the best."""
    states = [r.state for r in results]
    told = count(len(results), "run") + ": " + ", ".join(f"<span class={s}>{states.count(s)} {s}</span>" for s in dict.fromkeys(states))
    ranked = [r for r in results if r.best is not None]
    if not ranked:
        return told
    best = min(ranked, key=lambda r: r.best)
    return f"{told}; best {loss} loss <b>{best.best:.4f}</b>: #{best.number} {html.escape(best.label)}"


def chooser(results: Sequence[Result], colour: dict[int, str], loss: str) -> str:
    """What the colours mean, and which axes are logarithmic."""
    ranked = sorted((r for r in results if r.best is not None), key=lambda r: r.best)
    if len(ranked) > FEW:
        ramp = f"<span class=ramp style='background:linear-gradient(90deg,{','.join(charts.COLOURS)})'></span>"
        legend = f"<span>best {loss} loss {ranked[0].best:.4f}{ramp}{ranked[-1].best:.4f}</span>"
    else:
        legend = "".join(f"<span>{dot(colour[r.number])}#{r.number} {html.escape(r.label)}</span>" for r in ranked)
    axes = {"logx": "logarithmic tokens", "logy": "logarithmic values"}
    boxes = "".join(f"<label><input type=checkbox data-log={key}> {name}</label>" for key, name in axes.items())
    return f"<div class=choose>{legend}</div><div class=choose>{boxes}<span class=note>point at a curve or a row; click a row to keep it lit</span></div>"


def dot(colour: str) -> str:
    return f"<span class=dot style='background:{colour}'></span>"


def runs(results: Sequence[Result], keys: Sequence[str], colour: dict[int, str], loss: str, place: Path) -> str:
    """The table of runs, the best first."""
    numbers = (f"best {loss}", "validation", "training", "tokens", "tokens/s", "time")
    heads = [("#", ""), ("state", ""), *((k, "") for k in keys), *((name, "n") for name in numbers), ("", "")]
    sorted_by = 2 + len(keys)
    head = "".join(f"<th class='{kind}{' up' if i == sorted_by else ''}'>{html.escape(name)}</th>" for i, (name, kind) in enumerate(heads))
    ordered = sorted(results, key=lambda r: (r.best is None, r.best, r.number))
    body = "".join(row(r, keys, colour[r.number], place) for r in ordered)
    return f"<table class=runs><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def row(r: Result, keys: Sequence[str], colour: str, place: Path) -> str:
    label = html.escape(f"#{r.number} {r.label}", quote=True)
    numbers = [
        (r.best, figure(r.best)), (r.val, figure(r.val)), (r.train, figure(r.train)), (r.last["tokens"], short(r.last["tokens"])),
        (r.rate, f"{r.rate:,.0f}" if r.rate else "-"), (r.last.get("time"), duration(r.last["time"]) if "time" in r.last else "-"),
    ]  # fmt: skip
    pages = [(name, file) for name, file in (("report", r.folder.report), ("log", r.log)) if file.is_file()]
    links = " ".join(f"<a href='{html.escape(os.path.relpath(file, place), quote=True)}'>{name}</a>" for name, file in pages)
    cells = [
        f"<td data-sort={r.number}>{dot(colour)}{r.number}</td>",
        f"<td class={r.state} title='{html.escape(r.reason, quote=True)}'>{r.state}</td>",
        *(f"<td data-sort='{html.escape(sort_of(r.values.get(k)), quote=True)}'>{html.escape(str(r.values.get(k, '')))}</td>" for k in keys),
        *(f"<td class=n data-sort='{'' if n is None else n}'>{text}</td>" for n, text in numbers),
        f"<td>{links}</td>",
    ]
    return f"<tr data-run={r.number} data-label='{label}'>{''.join(cells)}</tr>"


def unfinished(results: Sequence[Result]) -> str:
    """Why each run that has not come to its end has not."""
    rows = "".join(
        f"<tr data-run={r.number}><td>#{r.number}</td><td class={r.state}>{r.state}</td>"
        f"<td>{html.escape(r.label)}<div class=reason>{html.escape(r.reason)}</div></td></tr>"
        for r in results
        if r.reason
    )
    return f"<h2>Not finished</h2><table class=why>{rows}</table>" if rows else ""


def sort_of(value: object) -> str:
    number = number_of(value)
    return str(value if number is None else number)


def bars(results: Sequence[Result], keys: Sequence[str], loss: str) -> str:
    """The importance of each setting, the largest first."""
    known = [r for r in results if r.best is not None]
    found = {}
    for key in keys:
        values = [r.values.get(key) for r in known]
        numbers = [number_of(v) for v in values]
        found[key] = importance(values if None in numbers else numbers, [r.best for r in known])
    told = (
        f"<p class=note>Share of the variance of the runs' ranks by best {loss} loss that lies between a setting's values, less what chance would give "
        "(epsilon squared; Kelley 1935), each setting alone. Settings that act together, and a search that prefers good regions, are not seen through.</p>"
    )
    if few := [k for k, v in found.items() if v is None]:
        told += (
            f"<p class=note>Too few runs to say for {html.escape(', '.join(few))}: {count(len(known), 'run')} with a loss; "
            f"at least {LEAST} are needed, and {GROUP} a value.</p>"
        )
    rows = "".join(
        f"<tr><td>{html.escape(k)}</td><td class=n>{v:.2f}</td><td style='width:420px'><div class=bar style='width:{v:.1%}'></div></td></tr>"
        for k, v in sorted(((k, v) for k, v in found.items() if v is not None), key=lambda kv: -kv[1])
    )
    return (f"<table class=bars>{rows}</table>" if rows else "") + told


def environment(results: Sequence[Result]) -> str:
    """What the runs ran on, once where all had the same, else by runs."""
    known = [r for r in results if r.env]
    if not known:
        return "<p class=note>No run has recorded it.</p>"
    facts: dict[str, dict[str, list[int]]] = {}
    for r in known:
        flat = {k: v for k, v in r.env.items() if k not in ("packages", "command")} | r.env.get("packages", {})
        for name, value in flat.items():
            facts.setdefault(name, {}).setdefault("-" if value in (None, "") else str(value), []).append(r.number)

    def told(values: dict[str, list[int]]) -> str:
        if len(values) == 1:
            return html.escape(next(iter(values)))
        return "<br>".join(f"{html.escape(v)} <span class=note>{spans(numbers)}</span>" for v, numbers in values.items())

    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{told(values)}</td></tr>" for name, values in facts.items())
    return f"<table>{rows}</table>"


def spans(numbers: Sequence[int]) -> str:
    """#1-4, #6"""
    out: list[list[int]] = []
    for n in sorted(numbers):
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ", ".join(f"#{a}" if a == b else f"#{a}-{b}" for a, b in out)
