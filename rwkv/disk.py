"""What is asked of a disk in several places: that something is really on it, that it is what it was, that nobody else has it."""

import errno
import fcntl
import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

FULL = errno.ENOSPC, errno.EDQUOT  # of an OSError: no room on the disk, or none left of what this user may have
LOOK = 0.05  # seconds after which who only looks whether a lock is held (`holder`) has let go of it again


def sync(path: Path) -> None:
    """Return once a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lock(file: TextIO, taken: Callable[[str], None]) -> None:
    """Take the lock of a file open as "a+" and write into it who has it; it is freed when the file is closed or the process ends.

    taken: called, before this waits, with the holder where another process has it; it may raise instead.
    """
    if not (try_lock(file) or time.sleep(LOOK) or try_lock(file)):
        file.seek(0)
        taken(file.read().strip() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def try_lock(file: TextIO | int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether this process has the lock now, of an open file or folder."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def holder(path: Path) -> str | None:
    """Who has the lock of this file; None if nobody has, or there is no such file."""
    try:
        with path.open() as file:
            return None if try_lock(file, fcntl.LOCK_SH) else file.read().strip() or "another process"
    except FileNotFoundError:
        return None


class Lines:
    """A file that grows line by line. What a full disk does not take is held, and written with a later line; that is said once."""

    def __init__(self, path: Path):
        self.path, self._held, self._told = path, b"", False
        self._file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        self._held += line.encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(self._held) < len(self._held):
                self._file.truncate(size)  # no torn line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._held = b""
        except OSError as error:
            if not self._told:
                print(f"warning: {self.path} cannot be written ({error.strerror}): its lines are held until it can", file=sys.stderr, flush=True)
            self._told = True

    def close(self) -> None:
        self._file.close()
