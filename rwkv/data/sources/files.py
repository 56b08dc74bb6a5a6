"""Files: each text file is a document."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkv.config.schema import Data
from rwkv.data.sources.unit import Found, Unit
from rwkv.errors import DataError


@dataclass(frozen=True)
class TextFile:
    """A file that is one document."""

    path: Path
    name: str

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def identity(self) -> str:
        stat = self.path.stat()
        return f"{self.name} {stat.st_size} {stat.st_mtime_ns}"

    def read(self) -> Iterator[Found]:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            yield Found(self.name, None, f"cannot be read: {error.strerror}")
            return
        bad = "empty" if not content.strip() else "not text (it holds zero bytes)" if b"\0" in content else None
        yield Found(self.name, None if bad else content, bad)


def file_units(data: Data, path: str) -> list[Unit]:
    """Of a folder, every file below it, in the order of their paths."""
    root = Path(path)
    if not root.exists():
        raise DataError(f"data.path={path}: no such file or folder")
    if root.is_file():
        return [TextFile(root, root.name)]
    files = sorted(f for f in root.rglob("*") if f.is_file() and not _hidden(f, root))
    if not files:
        raise DataError(f"data.path={path}: no file in it")
    return [TextFile(f, str(f.relative_to(root))) for f in files]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
