"""What `python -m rwkv.plan` says of memory and time, against what a run on this machine's GPU takes.

    python scripts/bench/plan_gpu.py [--write TABLE.md] [--ctx 4096] [--seconds 500] [--models 0.1b,0.4b,1.5b] [SETTING ...]

Each row is a run of its own of some more steps than the 20 after which training itself compares the two; one that fails prints its
error, and those that would begin after --seconds are left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.memory import human  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402
from rwkv.training.planning.compare import COMPARED_AFTER  # noqa: E402

RUNS = {  # of each model: rows of a step, settings
    "0.1b": [(16, ""), (16, "bptt.recompute=selective"), (16, "bptt.recompute=true")],
    "0.4b": [(8, ""), (8, "bptt.recompute=true"), (8, "precision=bf16-mixed")],
    "1.5b": [(2, ""), (8, "bptt.recompute=true")],
}


def run(args, folder: Path, model: str, rows: int, more: list[str]) -> dict | str:
    """The record of training in which both stand, or the error."""
    tokens = (COMPARED_AFTER + 4) * rows * args.ctx
    out = folder / f"out{time.monotonic_ns()}"
    command = [
        sys.executable, "-m", "rwkv.train", f"model={model}", "data=tokens", f"data.path={folder / 'tokens.npy'}", "tokenizer=world",
        *([] if any(x.startswith("precision") for x in more) else ["precision=bf16"]), "layout=fixed", f"layout.rows={rows}", f"ctx_len={args.ctx}", f"trainer.tokens={tokens}", "schedule.warmup_steps=0",
        "trainer.self_check=false", "trainer.val_every=0", "checkpoint.every=0", f"out={out}", *more, *args.setting,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    records = [json.loads(line) for file in out.glob("*/metrics.jsonl") for line in file.read_text().splitlines()]
    found = [record for record in records if "plan/memory" in record]
    return found[0] if found else next((line for line in reversed(done.stderr.strip().splitlines()) if "rror" in line), "?")[:200]


def row(name: str, rows: int, more: list[str], found: dict | str) -> str:
    head = f"| {name} | {rows} | {' '.join(more) or '-'} |"
    if isinstance(found, str):
        return f"{head} {found} |"
    seconds = f"{found['plan/step_seconds']:.3f}" if "plan/step_seconds" in found else "-"
    cells = human(found["plan/memory"]), human(found["peak_memory"]), f"{found['plan/memory'] / found['peak_memory']:.2f}", seconds, f"{found['step_seconds']:.3f}"
    return f"{head} {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--models", default=",".join(RUNS))
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("setting", nargs="*", help="of every run, such as strategy.accelerator=cpu")
    args = parser.parse_args()
    began = time.monotonic()
    lines = ["# Plan against run", "", f"{device_name()}, {date.today()}, ctx_len={args.ctx}, bf16 weights with fp32 masters", ""]
    lines += ["| model | rows | further settings | memory planned | measured | ratio | s a step planned | measured |", "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        np.save(folder / "tokens.npy", np.random.default_rng(0).integers(1, 65000, 8_000_000, dtype=np.uint16))
        for model in args.models.split(","):
            for rows, more in RUNS.get(model, [(4, "")]):
                if time.monotonic() - began < args.seconds:
                    lines.append(row(model, rows, more.split(), run(args, folder, model, rows, more.split())))
                    print(lines[-1], flush=True)
    print("\n".join(lines))
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
