"""The code as it is now, kept beside the jobs that will run it: what the checkout becomes meanwhile is not theirs."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from rwkv.config.compose import conf_dir
from rwkv.source import FROZEN, commit


def freeze(into: Path) -> Path:
    """A copy of the package and its settings in a folder named by their content; PYTHONPATH to it runs it.

    Returns:
        the folder, absolute; one that holds the same is used again.
    """
    package = Path(__file__).resolve().parents[1]
    files = {f.relative_to(package.parent): f for f in sorted(package.rglob("*")) if f.is_file() and f.parent.name != "__pycache__"}
    files |= {Path("conf") / f.relative_to(conf_dir()): f for f in sorted(conf_dir().rglob("*.yaml")) if package not in f.parents}
    contents = {name: f.read_bytes() for name, f in files.items()}
    digest = hashlib.sha256(b"".join(str(name).encode() + b"\0" + content for name, content in contents.items())).hexdigest()[:8]
    folder = into.resolve() / f"code-{digest}"
    if not folder.exists():
        temp = folder.with_name(f".{folder.name}-{os.getpid()}")
        for name, content in contents.items():
            (temp / name).parent.mkdir(parents=True, exist_ok=True)
            (temp / name).write_bytes(content)
        (temp / FROZEN).write_text(json.dumps(commit()))
        try:
            temp.rename(folder)
        except OSError:  # another call was faster
            shutil.rmtree(temp)
    return folder
