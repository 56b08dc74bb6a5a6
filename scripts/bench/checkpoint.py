"""How long training stands still for a checkpoint, written beside it and in the foreground, in one process, in turn.

    python scripts/bench/checkpoint.py [--repeats 5] [--write FILE] [key=value ...]

A round is: some steps without a save, before and after; a save in the foreground; a save beside training and steps until it is complete. Stall is what the
calls for the save and at the boundaries after it take; slowed is by how much the steps meanwhile take longer than those without a save,
which a writer that shares the training's cores and disk costs. The settings given change the model.
"""

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.bptt.states import size_bytes  # noqa: E402
from rwkv.checkpoint.run import RunFolder  # noqa: E402
from rwkv.config.compose import load  # noqa: E402
from rwkv.disk import sync  # noqa: E402
from rwkv.memory import human, peak_bytes  # noqa: E402
from rwkv.training.display import Display  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402
from rwkv.training.loop import optimizer_step  # noqa: E402
from rwkv.training.ranks import Ranks  # noqa: E402
from rwkv.training.session import Session  # noqa: E402

SETTINGS = ["model.n_layer=12", "model.n_embd=768", "layout.rows=1", "ctx_len=64", "trainer.tokens=1B", "trainer.val_every=0", "checkpoint.keep=1"]
STEPS = 4  # of a round without a save, before and again after
EVERY = 300  # seconds between saves that a share is said of: checkpoint.minutes=5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="file for the table")
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as tmp:
        cfg = load([*SETTINGS, f"out={tmp}", *args.settings])
        folder = RunFolder.of(cfg)
        folder.acquire()
        folder.make()
        session = Session(cfg, Ranks(cfg.strategy), folder)
        display = Display(None, cfg.trainer.tokens, visible=False)
        step(session, display)  # Adam's entries are there from here on
        size = sum(size_bytes(list(t.values())) for t in session._weights(lambda _, x: x).values())
        disk = write_speed(folder.path / "probe", size)
        before = peak_bytes(session.ranks.device)
        first, rounds = None, []
        for i in range(args.repeats + 1):
            measured = one_round(session, display)
            first, rounds = (measured, rounds) if i == 0 else (first, [*rounds, measured])
        held = peak_bytes(session.ranks.device) - before
    lines = table(first, rounds, size, disk, held, load_before)
    print("\n".join(lines))
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


def step(session: Session, display: Display) -> float:
    """Seconds of one optimizer step."""
    began = time.perf_counter()
    one = session.next_step()
    while not one.done:
        one.advance()
    optimizer_step(session, one, display)
    return time.perf_counter() - began


def timed(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def one_round(session: Session, display: Display) -> dict[str, float]:
    alone = [step(session, display) for _ in range(STEPS)]
    foreground = timed(lambda: session.save(wait=True))
    step(session, display)
    began = time.perf_counter()
    copy = timed(session.save)
    boundaries, beside = 0.0, []
    while session.saver.stage:
        beside.append(step(session, display))
        boundaries += timed(session.saver.advance) if session.saver.ready else 0.0
    complete = time.perf_counter() - began
    alone = statistics.fmean([*alone, *(step(session, display) for _ in range(STEPS))])
    return {"alone": alone, "foreground": foreground, "copy": copy, "boundaries": boundaries, "complete": complete, "slowed": sum(beside) - alone * len(beside)}


def write_speed(path: Path, size: int) -> float:
    """Bytes a second of the disk, of as many bytes as a checkpoint has, synced."""
    block = torch.randint(0, 255, (2**24,), dtype=torch.uint8).numpy()
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // block.nbytes):
            file.write(block)
    sync(path)
    path.unlink()
    return size / (time.perf_counter() - began)


def table(first: dict, rounds: list[dict], size: int, disk: float, held: int, load_before: float) -> list[str]:
    median = {key: statistics.median(r[key] for r in rounds) for key in first}
    stall = statistics.median(r["copy"] + r["boundaries"] for r in rounds)
    slowed = sorted(r["slowed"] for r in rounds)
    ratio = statistics.median(r["foreground"] / (r["copy"] + r["boundaries"]) for r in rounds)
    rows = [
        ("in the foreground (`checkpoint.background=false`)", median["foreground"], "-"),
        ("beside training", stall, f"{median['slowed']:+.2f} s ({slowed[0]:+.2f} to {slowed[-1]:+.2f})"),
    ]
    return [
        "# Saving a checkpoint",
        "",
        f"{device_name()}, torch {torch.__version__}, {datetime.date.today()}, a checkpoint of {human(size)}, a disk that takes {human(disk)} a second, "
        f"steps of {median['alone']:.2f} s, medians of {len(rounds)} rounds, one process; load {load_before:.1f} at the start, other programs on the machine.",
        "",
        f"| | training stands still | share at one save in {EVERY // 60} minutes | the steps meanwhile take longer by, in all |",
        "|---|---|---|---|",
        *(f"| {name} | {s:.3f} s | {s / EVERY:.2%} | {t} |" for name, s, t in rows),
        "",
        f"Foreground over background: {ratio:.1f} times the stall. Beside training a save is complete after {median['complete']:.1f} s; its first one, "
        f"for which memory is taken, stalls {first['copy'] + first['boundaries']:.3f} s. "
        f"The copy holds {human(size)} of host memory (peak of the process: {human(held)} more).",
        "",
        "Made by `python scripts/bench/checkpoint.py`.",
    ]


if __name__ == "__main__":
    main()
