"""report.html: one self-contained page of a run. Opens without network or server."""

import html
import json

from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import flatten
from rwkv.config.schema import TrainConfig
from rwkv.page import document, figure, plot, table
from rwkv.words import duration


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
    folder.report.write_text(document(folder.path.name, parts))
