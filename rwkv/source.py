"""Which source is running."""

import json
import subprocess
from pathlib import Path

FROZEN = "frozen.json"  # in a copy of the source: what the original was


def commit() -> dict[str, str | None]:
    """The source's commit, and which files differ from it; of a frozen copy, those of what was copied."""
    note = Path(__file__).resolve().parents[1] / FROZEN
    if note.is_file():
        return json.loads(note.read_text())
    return {"commit": _git("rev-parse", "HEAD"), "changed": _git("status", "--porcelain", "--untracked-files=no")}


def _git(*args: str) -> str | None:
    """git's answer for a checkout of this project; None for an installed wheel or without git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
