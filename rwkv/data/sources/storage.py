"""Files wherever they are: on disk, in a zip archive, at an address that fsspec knows; found by path, folder or pattern, read uncompressed."""

import bz2
import glob
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from rwkv.data.sources.unit import Unreadable
from rwkv.errors import DataError

BLOCK = 2**16  # compressed bytes read at once
BUFFER = 2**20  # bytes read ahead: lines come out of it four times as fast as out of Python's 8 KiB


class Damaged(ValueError):
    """A compressed file that does not decompress: why, in words."""


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError("reading .zst files needs the package zstandard: pip install zstandard") from None
    return zstandard.ZstdDecompressor().decompressobj()


DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".lzma": lzma.LZMADecompressor,
    ".zst": _zstd,
}


class Decompressed(io.RawIOBase):
    """A compressed stream, its members (frames) one after the other, uncompressed. Raises Damaged, also where it ends too early."""

    def __init__(self, raw: BinaryIO, make: Callable[[], Any]):
        self.raw, self.make = raw, make
        self.engine, self.ready, self.rest = make(), b"", b""
        self.fresh = True  # at the start of a member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            block = self.rest or self.raw.read(BLOCK)
            if not block:
                if not self.fresh:
                    raise Damaged("the compressed data ends early")
                return 0
            self.ready, self.rest = self._decompress(block)
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n

    def _decompress(self, block: bytes) -> tuple[memoryview, bytes]:
        try:
            out = self.engine.decompress(block)
        except Exception as error:  # each library has its own classes of errors
            raise Damaged(f"the compressed data is damaged ({error})") from error
        self.fresh = self.engine.eof
        rest = self.engine.unused_data if self.engine.eof else b""
        if self.engine.eof:
            self.engine = self.make()
        return memoryview(out), rest.lstrip(b"\0") and rest  # zero bytes pad archives

    def close(self) -> None:
        self.raw.close()
        super().close()


@dataclass(frozen=True)
class File:
    """A file of a source.

    path: on disk, or in `fs`. name: as shown to users.
    size: bytes as stored. stamp: changes when the content may have.
    fs: an fsspec file system; None: the disk.
    """

    path: str
    name: str
    size: int
    stamp: str
    fs: Any = field(default=None, compare=False)

    @property
    def identity(self) -> str:
        return f"{self.name} {self.size} {self.stamp}"

    @property
    def compression(self) -> str:
        suffix = PurePosixPath(self.path).suffix.lower()
        return suffix if suffix in DECOMPRESSORS else ""

    @property
    def ending(self) -> str:
        """ ".jsonl" of "a.jsonl" and of "a.JSONL.gz"."""
        return PurePosixPath(self.path.removesuffix(PurePosixPath(self.path).suffix) if self.compression else self.path).suffix.lower()

    def open(self) -> BinaryIO:
        """As stored, seekable. Raises OSError for the disk, DataError elsewhere."""
        if self.fs is None:
            return open(self.path, "rb", BUFFER)
        with self.trouble():
            return self.fs.open(self.path, "rb")

    def stream(self) -> BinaryIO:
        """Uncompressed, to be read from its start to its end. Raises as `open`, and Damaged while it is read."""
        raw = self.open()
        if self.compression:
            raw = Decompressed(raw, DECOMPRESSORS[self.compression])
        return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, BUFFER)  # some file systems have no readline(size)

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """A context in which errors of a remote file system become DataError: a network that fails is no bad record."""
        try:
            yield
        except (Damaged, DataError):
            raise
        except Exception as error:  # each file system has its own classes of errors
            if self.fs is None:
                raise
            raise DataError(f"{self.name}: cannot be read: {type(error).__name__}: {error}") from error


def find(path: str, storage: dict[str, Any] | None, setting: str) -> list[File | Unreadable]:
    """The files at a path: itself, all below a folder but the hidden ones, or those that match a pattern; zip archives opened; by name.

    Raises:
        DataError: there is none; it names `setting`, the key the path came from.
    """
    found = sorted(_remote(path, storage, setting) if "://" in path else _local(path, setting), key=lambda file: PurePosixPath(file.name).parts)
    if not found:
        away = ", or it cannot be reached" if "://" in path else ""
        raise DataError(f"{setting}={path}: no file {'matches' if _is_pattern(path) else 'in it'}{away}")
    return [out for file in found for out in (_members(file) if isinstance(file, File) and file.path.lower().endswith(".zip") else [file])]


def _is_pattern(path: str) -> bool:
    return any(c in path for c in "*?[")


def _local(path: str, setting: str) -> Iterator[File | Unreadable]:
    root = Path(path)
    if root.is_dir():
        for folder, subfolders, names in os.walk(root, onerror=_cannot_list):
            subfolders[:] = [d for d in subfolders if not d.startswith(".")]
            for name in names:
                if not name.startswith("."):
                    yield on_disk(Path(folder, name), str(Path(folder, name).relative_to(root)))
    elif root.exists():
        yield on_disk(root, root.name)
    elif _is_pattern(path):
        start = Path(*(Path(path).parts[: next(i for i, part in enumerate(Path(path).parts) if _is_pattern(part))]))
        for match in glob.glob(path, recursive=True):
            if not os.path.isdir(match):
                yield on_disk(Path(match), os.path.relpath(match, start))
    else:
        raise DataError(f"{setting}={path}: no such file or folder")


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def on_disk(path: Path, name: str) -> File | Unreadable:
    try:
        stat = path.stat()
    except OSError as error:
        return Unreadable(name, f"cannot be read: {error.strerror}")
    if not path.is_file():
        return Unreadable(name, "not a regular file")
    return File(str(path), name, stat.st_size, str(stat.st_mtime_ns))


def _remote(path: str, storage: dict[str, Any] | None, setting: str) -> Iterator[File]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(path, **(storage or {}))
        if _is_pattern(root):
            infos, start = (fs.glob(root, detail=True), root[: min(root.index(c) for c in "*?[" if c in root)].rpartition("/")[0])
        elif not path.endswith("/") and fs.isfile(root):
            infos, start = {root: fs.info(root)}, root.rpartition("/")[0]
        else:
            infos, start = fs.find(root, detail=True), root
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}
        scheme = path.split("://")[0].split("::")[-1]
        raise DataError(f"{setting}={path}: needs a package that is not installed: pip install {package.get(scheme, str(error))}") from error
    except FileNotFoundError as error:
        raise DataError(f"{setting}={path}: no such file or folder") from error
    except Exception as error:  # each file system has its own classes of errors
        raise DataError(f"{setting}={path}: cannot be listed: {type(error).__name__}: {error} (data.storage has the options of the file system)") from error
    for name, info in sorted(infos.items()):
        if info.get("size") is None:  # as in the listings of web servers
            info = fs.info(name)
        shown = name.removeprefix(start).lstrip("/")
        if info["type"] == "file" and not any(part.startswith(".") for part in shown.split("/")):
            stamp = str(next((info[k] for k in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created") if info.get(k)), ""))
            yield File(name, shown, int(info.get("size") or 0), stamp, fs)


def _members(archive: File) -> Iterator[File | Unreadable]:
    from fsspec.implementations.zip import ZipFileSystem

    try:
        target = {} if archive.fs is None else {"target_protocol": archive.fs.protocol, "target_options": archive.fs.storage_options}
        if isinstance(target.get("target_protocol"), tuple):
            target["target_protocol"] = target["target_protocol"][0]
        fs = ZipFileSystem(archive.path, **target)
        infos = fs.find("", detail=True)
    except (zipfile.BadZipFile, OSError) as error:
        yield Unreadable(archive.name, f"is no zip archive that can be read ({error})")
        return
    if not infos:
        yield Unreadable(archive.name, "an empty zip archive")
    for name, info in sorted(infos.items()):
        yield File(name, f"{archive.name}/{name}", info["size"], f"{archive.size} {archive.stamp}", fs)
