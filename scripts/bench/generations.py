"""Every generation on the embedded text, with the same settings: loss over tokens, in one picture.

    python scripts/bench/generations.py [--tokens 256k]       writes results/generations.{json,svg}
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.page import plot  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402

COLOURS = {"v4": "#999", "v5": "#5a8", "v6": "#58b", "v7": "#c03"}
SMOOTH = 16  # optimizer steps a point


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", default="256k")
    args = parser.parse_args()
    results, curves = {"device": device_name(), "tokens": args.tokens}, []
    for arch, colour in COLOURS.items():
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "rwkv.train", f"arch={arch}", f"trainer.tokens={args.tokens}", f"out={out}"]
            subprocess.run(command, cwd=ROOT, check=True)
            (run,) = (p.parent for p in Path(out).glob("*/summary.json"))
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            summary = json.loads((run / "summary.json").read_text())
        points = [(r["tokens"], r["train/loss"]) for r in records if "train/loss" in r]
        groups = [points[i : i + SMOOTH] for i in range(0, len(points), SMOOTH)]
        curves.append((arch, colour, [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]))
        results[arch] = {k: summary[k] for k in ("train_loss", "val_loss", "tokens_per_sec")} | {"curve": curves[-1][2]}
    folder = ROOT / "scripts/bench/results"
    (folder / "generations.json").write_text(json.dumps(results, indent=1))
    (folder / "generations.svg").write_text(plot(curves, ("unigram", summary["unigram"])))


if __name__ == "__main__":
    main()
