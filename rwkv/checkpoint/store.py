"""Checkpoints that are either whole or not there.

A checkpoint is a folder `step-N` (`step-N+W` when W chunks of the next step are done too) of safetensors and JSON files and a
manifest of their digests. It is written under another name, by all processes together, synced to disk, its manifest last, and
then renamed; every file is checked against the manifest before anything of it is used. No file format that could run code is
read: torch's distributed checkpoint is not used because its metadata is a pickle, which loading would run.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rwkv.disk import digest, sync
from rwkv.errors import CheckpointError
from rwkv.memory import human

MANIFEST, PROGRESS = "manifest.json", "progress.json"
_NAME = re.compile(r"step-(\d+)(?:\+(\d+))?$")

Writer = Callable[[Path], None]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest` so many, those of every `every`-th step, the `best` so many by validation loss."""

    newest: int
    every: int = 0
    best: int = 0


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written: of `step` optimizer steps and `work` chunks of the next one.

    root: the run's folder of checkpoints.
    attempt: the same in all processes that write this one, and in no others.
    """

    root: Path
    step: int
    work: int
    attempt: str

    @property
    def final(self) -> Path:
        return self.root / name_of(self.step, self.work)

    @property
    def temp(self) -> Path:
        return self.root / f".writing-{self.final.name}-{self.attempt}"

    def check_room(self, size: int) -> None:
        """Raises CheckpointError unless `size` bytes are free where the checkpoint is to be."""
        free = shutil.disk_usage(next(p for p in (self.root, *self.root.parents) if p.exists())).free
        if size > free:
            raise CheckpointError(
                f"checkpoint {self.final} was not written: it takes {human(size)}, and {human(free)} are free on that disk; make room there, "
                "or keep fewer (checkpoint.keep, keep_every, best); older checkpoints are as they were"
            )

    def write(self, writers: dict[str, Writer]) -> dict[str, dict]:
        """Write some of its files, and return once they are on the disk.

        Args:
            writers: file name -> function that writes that file at the path given.

        Returns:
            What the manifest says of them.

        Raises:
            CheckpointError: one could not be written (disk full, folder not writable).
        """
        with self._explained():
            self.temp.mkdir(parents=True, exist_ok=True)
            return {name: self._write(self.temp / name, write) for name, write in writers.items()}

    def _write(self, path: Path, write: Writer) -> dict:
        write(path)
        sync(path)
        return {"sha256": digest(path), "bytes": path.stat().st_size}

    def commit(self, files: dict[str, dict], keep: Keep) -> Path:
        """Make it a checkpoint, of these files, all written. Then drop those of later points, which another past led to, and
        those that `keep` does not keep.

        Raises:
            CheckpointError: it could not be done; older ones are as they were, once `clean` has been called.
        """
        with self._explained():
            (self.temp / MANIFEST).write_text(_manifest(files))
            sync(self.temp / MANIFEST)
            sync(self.temp)
            if self.final.exists():  # the same point again, after a resume from an older one
                os.replace(self.final, self.root / f".old-{self.final.name}-{self.attempt}")
            os.replace(self.temp, self.final)
            sync(self.root)
        retain(self.root, self.final, keep)
        return self.final

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # safetensors raises its own types for a full disk
            raise CheckpointError(f"checkpoint {self.final} could not be written: {error}; older checkpoints are as they were") from error


def retain(root: Path, newest: Path, keep: Keep) -> None:
    """Remove the checkpoints of later points than `newest`, and of the others those that `keep` does not keep."""
    found = points(root)
    past = found[found.index(newest) :]
    kept = {*past[: keep.newest], *best(past, keep.best)}
    if keep.every:
        kept |= {p for p in past if "+" not in p.name and step_of(p) % keep.every == 0}
    for old in [*(p for p in found if p not in kept), *root.glob(".old-*")]:
        _remove(old)


def best(found: list[Path], count: int) -> list[Path]:
    """The `count` checkpoints of the lowest validation losses, lowest first; those without one are none of them."""
    scored = sorted((loss, i) for i, p in enumerate(found) if count and (loss := val_loss(p)) is not None)
    return [found[i] for _, i in scored[:count]]


def val_loss(checkpoint: Path) -> float | None:
    """The validation loss of a checkpoint's weights; None if it was written without validation, or is no number."""
    try:
        loss = json.loads((checkpoint / PROGRESS).read_text())["val_loss"]
        return loss if math.isfinite(loss) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a checkpoint, by its name."""
    return int(_NAME.match(checkpoint.name)[1])


def name_of(step: int, work: int) -> str:
    return f"step-{step:08d}" + (f"+{work:06d}" if work else "")


def points(root: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    return [f for f in named(root) if (f / MANIFEST).is_file()]


def named(root: Path) -> list[Path]:
    """All that is named as a checkpoint, newest first: also what has lost its manifest."""
    found = [(int(m[1]), int(m[2] or 0), f) for f in (root.iterdir() if root.is_dir() else ()) if (m := _NAME.match(f.name))]
    return [f for *_, f in sorted(found, reverse=True)]


def problems(checkpoint: Path, share: slice = slice(None)) -> Iterator[str]:
    """What is wrong with a checkpoint, each file that differs from the manifest named; nothing if it is sound.

    share: of the files, largest first, those that are looked at here.
    """
    try:
        files = manifest(checkpoint)
    except CheckpointError as error:
        yield str(error)
        return
    for name, file in sorted(files.items(), key=lambda item: (-item[1]["bytes"], item[0]))[share]:
        wrong = difference(checkpoint / name, file["sha256"], file["bytes"])
        if wrong:
            yield f"{checkpoint / name}: {wrong}"


def difference(file: Path, sha256: str, size: int) -> str | None:
    """In what a file differs from what the manifest says of it; None if in nothing."""
    if not file.is_file():
        return "missing"
    if file.stat().st_size != size:
        return f"{file.stat().st_size} bytes, written with {size}"
    return None if digest(file) == sha256 else "its content has changed since it was written"


def manifest(checkpoint: Path) -> dict[str, dict]:
    """File name -> sha256, bytes. Raises CheckpointError if it is missing or not as it was written."""
    path = checkpoint / MANIFEST
    try:
        text = path.read_text()
        files = json.loads(text)["files"]
        if text != _manifest(files):
            raise ValueError("its content has changed since it was written")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing, and without it nothing shows that the other files are as written") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not as it was written, for it is no JSON: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return files


def _manifest(files: dict[str, dict]) -> str:
    """The manifest's one possible text for these digests: it holds its own."""
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "manifest": own}, indent=1)


def newest_good(root: Path, warn: Callable[[str], None], find: Callable[[Path], list[str]] = lambda p: list(problems(p))) -> Path | None:
    """The newest checkpoint whose every file is as written; None if there never was one. Bad ones are named to `warn`.

    find: gives a checkpoint's problems.

    Raises:
        CheckpointError: there are checkpoints, and none is sound.
    """
    found = named(root)
    for checkpoint in found:
        wrong = find(checkpoint)
        if not wrong:
            return checkpoint
        warn(f"{checkpoint.name} is damaged and not used: {'; '.join(wrong)}")
    if found:
        raise CheckpointError(f"{root}: none of its {len(found)} checkpoints is sound; delete the run's folder to train anew")
    return None


def clean(root: Path) -> None:
    """Remove what a killed save left; a point that it was replacing comes back. Only under the run's lock."""
    for old in root.glob(".old-*"):
        final = root / old.name.removeprefix(".old-").rpartition("-")[0]
        if not final.exists():  # killed between the two renames
            with suppress(OSError):
                os.replace(old, final)
    for leftover in (*root.glob(".writing-*"), *root.glob(".old-*"), *root.glob(".removing-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Renamed first, so that no half-deleted folder bears a checkpoint's name."""
    doomed = checkpoint.with_name(f".removing-{checkpoint.name}")
    with suppress(OSError):
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed)

