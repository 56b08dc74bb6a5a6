"""Whole training steps of RWKV-7 on one GPU, ctx 4096, bf16 with fp32 masters and fused AdamW: tokens a second, peak memory, share of the peak.

    python scripts/bench/model_gpu.py [--write TABLE.md] [--steps 10] [--only 0,4]

Each row is a process of its own, and timed once its CUDA graph is captured; while one has the GPU, the next few draw their weights.
`plain` is the same model with the operations around the recurrence in plain PyTorch.
"""

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rwkv.bptt.chunks import runner  # noqa: E402
from rwkv.bptt.engine import Settings, gradient  # noqa: E402
from rwkv.data.batch import Batch  # noqa: E402
from rwkv.kernels.registry import Kernels, ops_of  # noqa: E402
from rwkv.model.loss import LossModel  # noqa: E402
from rwkv.model.rwkv import RWKV, count_parameters, initial_weights  # noqa: E402
from rwkv.model.size import LoraRank, Size  # noqa: E402
from rwkv.model.state import State  # noqa: E402
from rwkv.training.optimizer import MASTER, Optimizer  # noqa: E402

CTX, VOCAB, PEAK = 4096, 65536, 989e12  # of an H100 in bf16, dense
AT_ONCE = 4  # processes, of which one has the GPU
PLAIN = Kernels(tuple((op, "torch") for op in ops_of("wkv7")[1:]))
ROWS = [  # layers, width, rows, bptt.recompute
    (12, 768, 16, False),
    (12, 768, 16, "selective"),
    (24, 2048, 2, False),
    (24, 2048, 2, "selective"),
    (24, 2048, 4, "selective"),
    (24, 2048, 6, "selective"),
    (24, 2048, 8, "selective"),
    (24, 2048, 8, True),
    (24, 2048, 16, True),
]


def measure(layers: int, width: int, rows: int, recompute: bool | str, plain: bool, steps: int, gpu) -> dict[str, float]:
    """Medians of training steps, each one chunk of CTX tokens in every row. gpu: a file, locked by the process that uses it."""
    size = Size(layers, width, VOCAB, LoraRank.default(width))
    weights = list(initial_weights(size, 0))
    fcntl.flock(gpu, fcntl.LOCK_EX)
    with torch.device("meta"):
        rwkv = RWKV(size, PLAIN if plain else Kernels()).bfloat16()
    rwkv = rwkv.to_empty(device="cuda")
    optimizer = Optimizer(rwkv, rwkv.optimizer_groups(), betas=(0.9, 0.99), eps=1e-18, weight_decay=0.1)
    for name, weight in weights:
        optimizer.put(name, {MASTER: weight})
    run, settings = runner(LossModel(rwkv), True, recompute == "selective"), Settings(CTX, recompute=recompute is True)
    state = State.zeros(size, rows, torch.bfloat16, "cuda")
    times, losses = [], []
    warm_up = run.after + 2  # steps: those before the graph is captured, the capture, one more
    for i in range(warm_up + steps):
        batch = Batch.of(np.random.default_rng(i).integers(0, VOCAB, (rows, CTX + 1)).astype(np.uint16))
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = gradient(run, batch, state, settings, batch.predicted).loss
        optimizer.clip(1.0).item()  # as the trainer, which judges it
        losses.append(loss.item())
        optimizer.step(1e-4)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = rows * CTX / statistics.median(times[warm_up:])
    matrices = count_parameters(rwkv) - rwkv.emb.weight.numel()
    return {"rate": rate, "peak": torch.cuda.max_memory_allocated() / 1e9, "mfu": 6 * matrices * rate / PEAK, "loss": losses[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fused", action="store_true", help="leave out the rows of plain PyTorch")
    parser.add_argument("--only", type=lambda x: [int(i) for i in x.split(",")], default=range(len(ROWS)), help="the rows of ROWS to measure")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gpu", type=argparse.FileType("w"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // AT_ONCE))
        print(json.dumps(measure(*ROWS[args.row], args.plain, args.steps, args.gpu)))
        return
    lines = [
        "# Whole training steps of RWKV-7 on one GPU", "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.today():%d %B %Y}; written by `scripts/bench/model_gpu.py`. ctx {CTX}, vocabulary {VOCAB},",
        "bf16 with fp32 masters, fused AdamW, clipping; medians. The share of the peak counts 6 FLOPs a weight and token, the recurrence and",
        "what is computed again not counted.", "",
        "| layers x width | rows | bptt.recompute | around the recurrence | tokens/s | peak GB | share of the peak | loss |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    todo = [(i, plain) for i in args.only for plain in ((False,) if ROWS[i][3] == "selective" or args.fused else (True, False))]
    with tempfile.NamedTemporaryFile() as gpu, ThreadPoolExecutor(AT_ONCE) as pool:
        for line in pool.map(lambda row: line_of(*row, args.steps, gpu.name), todo):
            lines.append(line)
            print(line, flush=True)
            if args.write:
                args.write.write_text("\n".join(lines) + "\n")


def line_of(i: int, plain: bool, steps: int, gpu: str) -> str:
    """The table's line, of a process that measures the row."""
    layers, width, rows, recompute = ROWS[i]
    command = [sys.executable, __file__, "--row", str(i), "--steps", str(steps), "--gpu", gpu, *(["--plain"] if plain else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    start = f"| {layers} x {width} | {rows} | {str(recompute).lower()} | {'plain PyTorch' if plain else 'fused'} |"
    if done.returncode:
        return f"{start} {(done.stderr.strip().splitlines() or ['?'])[-1][:80]} | | | |"
    r = json.loads(done.stdout.splitlines()[-1])
    return f"{start} {r['rate']:,.0f} | {r['peak']:.1f} | {r['mfu']:.0%} | {r['loss']:.4f} |"


if __name__ == "__main__":
    main()
