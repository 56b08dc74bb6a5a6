"""A task that needs the gradient of the whole document: recall over many chunks, learnt with exact and with truncated BPTT.

A document is random symbols; one of them, in the first chunk, follows a mark. The last token asks for it, and only that answer
is trained. The state holds it only if the model has learnt, chunks earlier, to write what follows a mark and to let
everything else pass: a gradient that stops at the last chunk's start never says so.

    python scripts/bench/recall.py            trains at 4 chunks, then at 8, 16, 32, 64; writes results/recall.{json,svg}
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.bptt.engine import Settings, gradient  # noqa: E402
from rwkv.data.batch import Batch  # noqa: E402
from rwkv.model.loss import LossModel  # noqa: E402
from rwkv.model.rwkv import RWKV  # noqa: E402
from rwkv.model.size import LoraRank, Size  # noqa: E402
from rwkv.model.state import State  # noqa: E402
from rwkv.page import plot  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402
from rwkv.training.optimizer import Optimizer  # noqa: E402

SYMBOLS, CTX = 16, 16
MARK, ASK = SYMBOLS, SYMBOLS + 1
SIZE = Size(n_layer=2, n_embd=64, vocab_size=SYMBOLS + 2, lora_rank=LoraRank(32, 32, 32, 32), head_size=64)


def documents(rows: int, chunks: int, rng: np.random.Generator) -> Batch:
    """Rows of chunks x CTX tokens and an answer; only the answer is trained."""
    length = chunks * CTX
    tokens = rng.integers(0, SYMBOLS, (rows, length + 1)).astype(np.uint16)
    at = rng.integers(0, CTX - 2, rows)
    tokens[np.arange(rows), at] = MARK
    tokens[:, -2] = ASK
    tokens[:, -1] = tokens[np.arange(rows), at + 1]
    predict = np.zeros((rows, length), dtype=bool)
    predict[:, -1] = True
    return Batch.of(tokens, predict)


@torch.no_grad()
def accuracy(model: RWKV, chunks: int, rng: np.random.Generator, rows: int = 256) -> float:
    """Share of right answers on fresh documents; chance is 1 / SYMBOLS."""
    document = documents(rows, chunks, rng).chunk(0, chunks * CTX, 1.0, "cpu")
    hidden, _ = model(document.tokens)
    return (model.logits(hidden[:, -1]).argmax(-1) == document.targets[:, -1]).float().mean().item()


def learn(window: int | None, stages: list[tuple[int, int]], rows: int = 32, lr: float = 3e-3, seed: int = 0, say=print) -> dict[int, float]:
    """Train through (chunks, steps) stages, each going on from the last; accuracy at the end of each."""
    rng = np.random.default_rng(seed)
    model = LossModel(RWKV(SIZE).init_weights(seed))
    optimizer = Optimizer(model.rwkv, model.rwkv.optimizer_groups(), betas=(0.9, 0.99), eps=1e-18, weight_decay=0.0)
    reached = {}
    for chunks, steps in stages:
        for step in range(steps):
            batch = documents(rows, chunks, rng)
            done = gradient(model, batch, State.zeros(SIZE, rows, torch.float32), Settings(CTX, window), batch.predicted)
            optimizer.clip(1.0)
            optimizer.step(lr * min(1, (step + 1) / 20))
            if step % 50 == 49:
                say(f"  {chunks} chunks, step {step + 1}: loss {done.loss.item():.3f}")
        reached[chunks] = accuracy(model.rwkv, chunks, np.random.default_rng(seed + 1))
        say(f"{chunks} chunks: {reached[chunks]:.0%} right")
    return reached


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=300, help="steps at 4 chunks")
    parser.add_argument("--then", type=int, default=20, help="steps at each longer length")
    args = parser.parse_args()
    stages = [(4, args.first), *((n, args.then) for n in (8, 16, 32, 64))]
    results = {"device": device_name(), "chance": 1 / SYMBOLS}
    for name, window in (("exact", None), ("truncated(1)", 1)):
        print(name)
        results[name] = learn(window, stages, say=lambda text: print(text, flush=True))
    out = ROOT / "scripts/bench/results"
    (out / "recall.json").write_text(json.dumps(results, indent=1))
    curves = [(name, colour, list(results[name].items())) for name, colour in (("exact", "#c03"), ("truncated(1)", "#58b"))]
    (out / "recall.svg").write_text(plot(curves, ("chance", 1 / SYMBOLS)))


if __name__ == "__main__":
    main()
