"""Every strategy on one and on several GPUs of this machine: tokens a second, peak memory of a rank, and the gradient against one GPU's.

    python scripts/bench/strategies_gpu.py [--write TABLE.md] [--model 0.4b] [--rows 8] [--ctx 4096] [--steps 10] [--devices 1,2] [--seconds 400]

Fused AdamW, documents of several chunks with the exact gradient. Each row is a run of its own; one that
fails prints its error, and those that would begin after --seconds are left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.config.compose import load  # noqa: E402
from rwkv.training.ranks import Ranks  # noqa: E402
from rwkv.training.session import Session  # noqa: E402

STRATEGIES = ("ddp", "fsdp", "ds1", "ds2", "ds3", "ds2_offload", "ds3_offload")
WARM = 4
CHUNKS = 2  # of a document


def run(out: Path, steps: int, overrides: list[str]) -> None:
    """A program of its own, so that every rank can be started with the same arguments."""
    cfg = load(overrides)
    session = Session(cfg, Ranks(cfg.strategy), None)
    cuda, times, losses, norms = session.ranks.device.type == "cuda", [], [], []
    for _ in range(WARM + steps):
        start = time.perf_counter()
        step = session.next_step()
        while not step.done:
            step.advance()
        losses.append(session.ranks.sum(step.loss.clone()).sum().item())
        norms.append(session.strategy.clip(cfg.optim.clip))
        session.strategy.step(session.learning_rate())
        session.advance(step)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = session.ranks.gather(torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0)
    if session.ranks.first:
        rate = step.tokens / statistics.median(times[WARM:])
        out.write_text(json.dumps({"rate": rate, "peak": max(peak), "loss": losses, "norm": norms[0]}))


def measure(args, folder: Path, strategy: str, devices: int, rows: int) -> dict | str:
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    settings = [
        f"model={args.model}", "data=tokens", f"data.path={folder / 'tokens.npy'}", "tokenizer=world", f"precision={args.precision}", "layout=fixed",
        f"layout.rows={rows}", f"layout.chunks={CHUNKS}", f"ctx_len={args.ctx}", "bptt=exact", "trainer.tokens=1B", "schedule.warmup_steps=0",
        f"strategy={strategy}", f"strategy.devices={devices}", f"out={folder / 'out'}", *args.override,
    ]  # fmt: skip
    command = [sys.executable, __file__, "--run", str(out), "--steps", str(args.steps), *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == 0 and out.exists():
        return json.loads(out.read_text())
    return next((line for line in reversed(done.stderr.strip().splitlines()) if "rror" in line), "?")[:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--model", default="0.4b")
    parser.add_argument("--rows", type=int, default=8, help="of each device")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", default="bf16", help="bf16: with fp32 masters")
    parser.add_argument("--devices", default="1,2")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("override", nargs="*", help="settings of the training, such as strategy.accelerator=cpu")
    args = parser.parse_args()
    if args.run:
        run(args.run, args.steps, args.override)
        return
    began = time.monotonic()
    most = max(int(d) for d in args.devices.split(","))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = np.random.default_rng(0).zipf(1.2, 4_000_000) % 65535 + 1
        ids[:: CHUNKS * args.ctx] = 0
        np.save(folder / "tokens.npy", ids.astype(np.uint16))
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        lines = [
            "# Strategies on several GPUs", "",
            f"{device}, torch {torch.__version__}, {date.today():%d %B %Y}; written by `scripts/bench/strategies_gpu.py`.",
            f"{args.model}, precision={args.precision}, {args.rows} documents of {CHUNKS} x {args.ctx} tokens a device and step, exact gradient; medians of",
            f"{args.steps} steps. Norm and loss after the last step: relative difference from one device with the same documents ({args.rows * most} rows).", "",
            "| strategy | devices | tokens/s | over one device (ddp) | peak GB of a rank | first gradient norm | last loss |", "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        print("\n".join(lines), flush=True)
        same = measure(args, folder, "ddp", 1, args.rows * most)
        base = None
        for devices in map(int, args.devices.split(",")):
            for strategy in ("ddp",) if devices == 1 else args.strategies.split(","):
                if time.monotonic() - began > args.seconds:
                    lines.append(f"| {strategy} | {devices} | not run: no time left | | | | |")
                    continue
                got = measure(args, folder, strategy, devices, args.rows * devices)
                if isinstance(got, str):
                    lines.append(f"| {strategy} | {devices} | {got} | | | | |")
                else:
                    base = base or got["rate"]
                    against = "| | |"
                    if devices == most and isinstance(same, dict):
                        off = (abs(a / b - 1) for a, b in ((got["norm"], same["norm"]), (got["loss"][-1], same["loss"][-1])))
                        against = "| {:.0e} | {:.0e} |".format(*off)
                    lines.append(f"| {strategy} | {devices} | {got['rate']:,.0f} | {got['rate'] / base:.2f} | {got['peak']:.1f} {against}")
                print(lines[-1], flush=True)
                if args.write:
                    args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
