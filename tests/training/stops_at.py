"""A run that notes what it reads, and is stopped, or killed, at a place of one's choice."""

import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

from rwkv import train
from rwkv.config import cli
from rwkv.training.loop import Breaks, Session


class Stop(NamedTuple):
    """A signal to the run itself, behind so many optimizer steps, seconds later.

    batch: between the first and the second chunk of this batch of the step after them; None: before it.
    """

    steps: int
    batch: int | None = None
    number: int = signal.SIGTERM
    later: float = 0.0


def stops_at(overrides: list[str], stop: Stop | None, reads: Path) -> int:
    """Of each row that this rank reads a line goes to reads-RANK: optimizer step, batch of it, row, first tokens' places, digest of its tokens.

    Of several ranks the last alone gets the signal.
    """
    rank, world = (int(os.environ.get(name, one)) for name, one in (("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    told = reads.with_name(f"{reads.name}-{rank}").open("a", buffering=1)
    take, inside, between = Session.next_step, Breaks.inside, Breaks.between

    def next_step(session):
        step = take(session)
        for number, batch in enumerate(step.batches):
            part = batch.rank(session.ranks.rank, session.ranks.world)
            for i, row in enumerate(part.rows):
                tokens = b"".join(s.corpus.tokens[s.start : s.start + s.count].tobytes() for s in row)
                key = session.step, number, session.ranks.rank + i * session.ranks.world
                told.write(json.dumps([*key, [s.start for s in row], hashlib.sha256(tokens).hexdigest()]) + "\n")
        return step

    def at(here: tuple) -> None:
        if stop and rank == world - 1 and here == (stop.steps, stop.batch):
            kill = lambda: os.kill(os.getpid(), stop.number)
            threading.Timer(stop.later, kill).start() if stop.later else kill()

    def inside_step(breaks, step):
        at((breaks.session.step, step.micro if step.tick == 1 else -1))
        return inside(breaks, step)

    def between_steps(breaks):
        at((breaks.session.step, None))
        return between(breaks)

    Session.next_step, Breaks.inside, Breaks.between = next_step, inside_step, between_steps
    return cli.guarded(train.main, overrides)


def what_was_read(reads: Path) -> dict[tuple[int, int, int], tuple[list[int], str]]:
    """(step, batch, row) -> (places, digest), as read last: what a kill has undone is read again."""
    lines = [json.loads(line) for file in sorted(reads.parent.glob(f"{reads.name}-*")) for line in file.read_text().splitlines()]
    return {tuple(key): (places, digest) for *key, places, digest in lines}
