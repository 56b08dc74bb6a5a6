"""The README says what is so: its table of groups, and every command in it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.conftest import ROOT, command, the_run, tiny, write_text

README = (ROOT / "README.md").read_text()
TEXT = re.sub(r"```text.*?```", "", README, flags=re.DOTALL)
COMMANDS = sorted({c.strip() for c in re.findall(r"(?:^|`)((?:\.venv/bin/)?python -m rwkv\.[^`\n&]+)", TEXT, re.MULTILINE)})
COMMANDS.sort(key=lambda c: "train -m" not in c)  # what lists sweeps comes after one
SLURM = "hydra/launcher=slurm"  # on a machine without it, as this one usually is


def test_the_table_of_groups_is_up_to_date():
    assert subprocess.run([sys.executable, "scripts/readme_groups.py", "--check"], cwd=ROOT).returncode == 0, "run scripts/readme_groups.py"


def test_commands_are_found():
    assert len(COMMANDS) >= 10 and any("strategy=ds3" in c for c in COMMANDS)


def test_the_two_commands_are_the_ones_that_ci_and_this_file_run():
    first = re.search(r"```bash\nbash (scripts/setup\.sh) && \.venv/bin/python -m rwkv\.train\n```", README)
    second = re.search(r"```bash\nbash (scripts/test\.sh)\n```", README)
    assert all((ROOT / m[1]).is_file() for m in (first, second))
    assert second[1] in (ROOT / ".ci/run").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_run):
    """Where the commands are typed: with a README.md, the data that they name, and a run in outputs/."""
    folder = tmp_path_factory.mktemp("readme")
    text = write_text(folder / "README.md").read_text()
    (folder / "books").mkdir()
    write_text(folder / "books/one.txt")
    (folder / "books.jsonl.zst").write_bytes(zstandard.compress("".join(json.dumps({"text": text}) + "\n" for _ in range(4)).encode()))
    chat = [{"role": "user", "content": "Who goes there?"}, {"role": "assistant", "content": text[:200]}]
    (folder / "chats.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 60)
    shutil.copytree(tiny_run, folder / "outputs" / "RUN")
    return folder


def shortened(args: list[str]) -> list[str]:
    """The same command, trained for a few tokens only."""
    keys = {a.split("=")[0] for a in args}
    args = args + ["hydra.sweeper.trials=2"] if "hydra/sweeper=optuna" in args else args
    return args + [a for a in tiny("trainer.tokens=256") if a.split("=")[0] not in keys and a.split("=")[0] not in ("ctx_len", "layout.rows")]


@pytest.mark.parametrize("line", [c for c in COMMANDS if not c.startswith(".venv")])
def test_command(line, folder):
    _, _, module, *args = shlex.split(line)
    module = module.removeprefix("rwkv.")
    if module == "train" and "--cfg" not in args and "--help" not in args:
        args = shortened(args)
    done = command(module, *args, cwd=folder, env={"PATH": str(Path(sys.executable).parent)} if SLURM in line else None)
    if SLURM in line:
        assert done.returncode == 2 and "there is no Slurm on this machine" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_main_job(tmp_path):
    """No arguments: the losses are the expected ones, the sample and the report are there."""
    done = command("train", cwd=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stderr
    got = {name: (float(loss), float(want)) for name, loss, want in re.findall(r"(\w+) loss +([\d.]+) +expected ([\d.]+)", done.stdout)}
    assert got.keys() == {"training", "validation"} and "off by" not in done.stdout, done.stdout
    assert got["validation"][0] < 2.0
    run = the_run(tmp_path / "outputs")
    page = (run / "report.html").read_text()
    assert "<svg" in page and "validation" in page and not re.search("src=|href=|@import|url\\(", page)
    assert "**ROMEO**" in next((run / "samples").iterdir()).read_text()
