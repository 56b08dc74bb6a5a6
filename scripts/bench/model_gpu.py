"""Whole training steps of RWKV-7 on one GPU, ctx 4096, bf16 with fp32 masters and fused AdamW: tokens a second, peak memory, share of the peak.

    python scripts/bench/model_gpu.py [--write TABLE.md] [--steps 10]

Each row is a process of its own. `plain` is the same model with the operations around the recurrence in plain PyTorch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rwkv.bptt.chunks import runner  # noqa: E402
from rwkv.bptt.engine import Settings, gradient  # noqa: E402
from rwkv.data.batch import Batch  # noqa: E402
from rwkv.kernels import registry  # noqa: E402
from rwkv.model.loss import LossModel  # noqa: E402
from rwkv.model.rwkv import RWKV, count_parameters, initial_weights  # noqa: E402
from rwkv.model.size import LoraRank, Size  # noqa: E402
from rwkv.model.state import State  # noqa: E402
from rwkv.training.optimizer import MASTER, Optimizer  # noqa: E402

CTX, VOCAB, PEAK = 4096, 65536, 989e12  # of an H100 in bf16, dense
AROUND = ("norm_mix", "wkv7_inputs", "wkv7_readout", "relu_squared", "cross_entropy_")
ROWS = [  # layers, width, rows, bptt.recompute
    (12, 768, 16, False),
    (12, 768, 16, "selective"),
    (24, 2048, 2, False),
    (24, 2048, 2, "selective"),
    (24, 2048, 4, "selective"),
    (24, 2048, 6, "selective"),
    (24, 2048, 8, True),
    (24, 2048, 16, True),
]


def measure(layers: int, width: int, rows: int, recompute: bool | str, plain: bool, steps: int) -> dict[str, float]:
    """Medians of training steps, each one chunk of CTX tokens in every row."""
    if plain:
        for op in AROUND:
            registry._OPS[op] = {"torch": registry._OPS[op]["torch"]}
    size = Size(layers, width, VOCAB, LoraRank.default(width))
    with torch.device("meta"):
        rwkv = RWKV(size).bfloat16()
    rwkv = rwkv.to_empty(device="cuda")
    optimizer = Optimizer(rwkv, rwkv.optimizer_groups(), betas=(0.9, 0.99), eps=1e-18, weight_decay=0.1)
    for name, weight in initial_weights(size, 0):
        optimizer.put(name, {MASTER: weight})
    run, settings = runner(LossModel(rwkv), True, recompute == "selective"), Settings(CTX, recompute=recompute is True)
    state = State.zeros(size, rows, torch.bfloat16, "cuda")
    times, losses = [], []
    for i in range(4 + steps):
        batch = Batch.of(np.random.default_rng(i).integers(0, VOCAB, (rows, CTX + 1)).astype(np.uint16))
        torch.cuda.synchronize()
        start = time.perf_counter()
        losses.append(gradient(run, batch, state, settings, batch.predicted).loss.item())
        optimizer.clip(1.0)
        optimizer.step(1e-4)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = rows * CTX / statistics.median(times[4:])
    matrices = count_parameters(rwkv) - rwkv.emb.weight.numel()
    return {"rate": rate, "peak": torch.cuda.max_memory_allocated() / 1e9, "mfu": 6 * matrices * rate / PEAK, "loss": losses[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fused", action="store_true", help="leave out the rows of plain PyTorch")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        print(json.dumps(measure(*ROWS[args.row], args.plain, args.steps)))
        return
    lines = [
        "# Whole training steps of RWKV-7 on one GPU", "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.today():%d %B %Y}; written by `scripts/bench/model_gpu.py`. ctx {CTX}, vocabulary {VOCAB},",
        "bf16 with fp32 masters, fused AdamW, clipping; medians. The share of the peak counts 6 FLOPs a weight and token, the recurrence and",
        "what is computed again not counted.", "",
        "| layers x width | rows | bptt.recompute | around the recurrence | tokens/s | peak GB | share of the peak | loss |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    for i, (layers, width, rows, recompute) in enumerate(ROWS):
        for plain in (False,) if recompute == "selective" or args.fused else (True, False):
            command = [sys.executable, __file__, "--row", str(i), "--steps", str(args.steps), *(["--plain"] if plain else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            start = f"| {layers} x {width} | {rows} | {str(recompute).lower()} | {'plain PyTorch' if plain else 'fused'} |"
            if done.returncode:
                lines.append(f"{start} {(done.stderr.strip().splitlines() or ['?'])[-1][:80]} | | | |")
            else:
                r = json.loads(done.stdout.splitlines()[-1])
                lines.append(f"{start} {r['rate']:,.0f} | {r['peak']:.1f} | {r['mfu']:.0%} | {r['loss']:.4f} |")
            print(lines[-1], flush=True)
            if args.write:
                args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
