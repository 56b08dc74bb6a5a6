"""Builds one C++ file into a shared library with the machine's own compiler, once per source, compiler and CPU."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from rwkv.errors import KernelError

FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-w"]
NATIVE = ["-march=native", "-mcpu=native"]  # the second where a compiler for Arm lacks the first
TIMEOUT_S = 120


def compile_cpp(source: Path) -> Path:
    """The library of `source`, from the user's cache folder or built into it.

    Raises:
        KernelError: there is no compiler, the build fails, or the cache folder cannot be written; one line.
    """
    compiler = _compiler()
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=TIMEOUT_S).stdout
        parts = [with_includes(source), shlex.join(compiler).encode(), version, _cpu().encode(), " ".join(FLAGS + NATIVE).encode()]
        return cached(source.stem, ".so", parts, lambda out: _build(compiler, source, out))
    except (OSError, subprocess.TimeoutExpired) as e:
        raise KernelError(f"{source.name} was not built: {e}") from e


def cached(stem: str, suffix: str, parts: list[bytes], build: Callable[[Path], None]) -> Path:
    """The file that `build` makes of `parts`, from the user's cache folder or built into it. Raises OSError if that cannot be written."""
    digest = hashlib.sha256(b"\0".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()[:20]
    folder = cache_folder()
    file = folder / f"{stem}-{digest}{suffix}"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as tmp:
            built = Path(tmp, "built")
            build(built)
            built.replace(file)  # whole or not at all, whoever else builds it now
    return file


def with_includes(source: Path) -> bytes:
    """The text of a file, with those that it includes by `#include "..."` in the place of these lines."""
    return re.sub(rb'^#include "(.+)"', lambda m: with_includes(source.parent / m[1].decode()), source.read_bytes(), flags=re.M)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv"


def _compiler() -> list[str]:
    """The first of $CXX, g++, c++, clang++ that is there."""
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    raise KernelError("no C++ compiler found ($CXX, g++, c++, clang++)")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({x for x in lines if x.startswith(("flags", "Features", "model name", "CPU part"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"


def _build(compiler: list[str], source: Path, out: Path) -> None:
    """With threads and for this CPU if the compiler can, else with less."""
    for optional in ([NATIVE[0], "-fopenmp"], [NATIVE[1], "-fopenmp"], [NATIVE[0]], [NATIVE[1]], []):
        command = [*compiler, *FLAGS, *optional, "-o", str(out), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
        if done.returncode == 0:
            return
    errors = [x for x in done.stderr.splitlines() if "error" in x] or done.stderr.splitlines() or [f"exit {done.returncode}"]
    raise KernelError(f"{shlex.join(compiler)} cannot build {source.name}: {errors[0].strip()}")
