"""Checkpoints written beside training, which waits only while what is saved is copied."""

import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rwkv.bptt.states import size_bytes
from rwkv.checkpoint import shards, store
from rwkv.errors import CheckpointError
from rwkv.training.ranks import Ranks
from rwkv.training.signals import SAVED

T = TypeVar("T")
IDLE, WRITING, COMMITTING = range(3)


class Saver:
    """One checkpoint at a time. Each rank writes its files in a thread; when all have, the first rank's thread commits them.

    Threads say nothing to other ranks: the ranks agree in `advance`, at boundaries of training, which all of them reach. What a
    rank writes, 12 bytes for each of its parameters, is held a second time in the host's memory, from the first save on.

    Attributes:
        stage: IDLE, WRITING or COMMITTING, the same on every rank.
    """

    def __init__(self, ranks: Ranks, root: Path, keep: store.Keep):
        self.ranks, self.root, self.keep = ranks, root, keep
        self.attempt = ranks.fabric.broadcast(uuid.uuid4().hex[:8])
        self.stage = IDLE
        self._copies: dict[str, Tensor] = {}

    def copy(self, key: str, x: Tensor) -> Tensor:
        """A copy of x as it is now, on the host; valid until the next one with this key."""
        held = self._copies.get(key)
        if held is None or (held.shape, held.dtype) != (x.shape, x.dtype):
            held = self._copies[key] = torch.empty(x.shape, dtype=x.dtype)
        return held.copy_(x.detach())

    def start(self, step: int, work: int, tensors: dict[str, dict[str, Tensor]], texts: dict[str, str]) -> None:
        """Begin to write a checkpoint, none being written: this rank's shards, by kind, and text files by name.

        The tensors must stay as they are until it is written. Every rank calls it.

        Raises:
            CheckpointError: there is no room for it. On every rank.
        """
        assert self.stage == IDLE
        self.draft = store.Draft(self.root, step, work, self.attempt)
        size = sum(self.ranks.gather(sum(size_bytes(list(t.values())) for t in tensors.values())))
        self._agreed(lambda: self.draft.check_room(size) if self.ranks.first else None)
        writers = {shards.name_of(kind, self.ranks.rank): shards.writer(t) for kind, t in tensors.items()}
        writers |= {name: lambda path, text=text: path.write_text(text) for name, text in texts.items()}
        self.stage, self._task = WRITING, Task(lambda: self.draft.write(writers))

    @property
    def ready(self) -> bool:
        """Whether this rank's thread has done its part of the stage."""
        return self.stage != IDLE and not self._task.is_alive()

    def advance(self) -> Path | None:
        """Wait for the threads of all ranks and go on to the next stage. Returns the checkpoint if it is complete now.

        Raises:
            CheckpointError: a rank could not write its part. On every rank; nothing is left of it.
        """
        try:
            results = self._agreed(self._task.result)
        except CheckpointError:
            self.stage = IDLE
            if self.ranks.first:
                store.clean(self.root)
            raise
        if self.stage == COMMITTING:
            self.stage = IDLE
            if self.ranks.first and SAVED in os.environ:
                Path(os.environ[SAVED]).write_text(results[0].name)
            return results[0]
        files = {name: file for written in results for name, file in written.items()}
        self.stage, self._task = COMMITTING, Task(lambda: self.draft.commit(files, self.keep) if self.ranks.first else None)
        return None

    def finish(self) -> Path | None:
        """Wait until what is being written, if anything is, is complete. Returns the checkpoint; raises as `advance` does."""
        found = None
        while self.stage != IDLE:
            found = self.advance()
        return found

    def _agreed(self, action: Callable[[], T]) -> list[T]:
        """What `action` gives, of every rank. A CheckpointError of any is raised on all."""
        result, wrong = None, None
        try:
            result = action()
        except CheckpointError as error:
            wrong = str(error)
        answers = self.ranks.gather((result, wrong))
        if wrong := next((w for _, w in answers if w), None):
            raise CheckpointError(wrong)
        return [r for r, _ in answers]


class Task(threading.Thread):
    """An action in a thread. One that the process does not wait for: a second Ctrl-C ends it without."""

    def __init__(self, action: Callable[[], Any]):
        super().__init__(daemon=True)
        self._action, self._result, self._error = action, None, None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._action()
        except Exception as error:
            self._error = error

    def result(self) -> Any:
        """What the action gave, or its error, once there is one."""
        self.join()
        if self._error:
            raise self._error
        return self._result
