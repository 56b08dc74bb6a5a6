"""The hub by its protocol: a server on this machine stands for it, a user's command reads from it; and copies of the ready sets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.conftest import ROOT
from tests.data.hub_server import NAME, serving
from tests.data.preparing import about, prepare, texts
from tests.data.sourcing import data_of, write

SHARDS, ROWS = 4, 10


def parquet(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), write(path, b""))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Two configurations, en and de, at the revisions main and v2, which has the first of the files alone."""
    root = tmp_path_factory.mktemp("hub")
    config = "- config_name: {0}\n  default: {1}\n  data_files: [{{split: train, path: {0}/train-*}}, {{split: validation, path: {0}/val-*}}]\n"
    for revision, shards in (("main", SHARDS), ("v2", 1)):
        write(root / revision / "README.md", f"---\nconfigs:\n{config.format('en', 'true')}{config.format('de', 'false')}---\n")
        for language in ("en", "de"):
            rows = [{"text": f"{language} {i}", "n": i} for i in range(SHARDS * ROWS)]
            for i in range(shards):
                parquet(root / revision / language / f"train-{i:05d}-of-{shards:05d}.parquet", rows[i * ROWS : (i + 1) * ROWS])
            parquet(root / revision / language / "val-00000-of-00001.parquet", [{"text": f"{language} val", "n": 0}])
    with serving(root) as server:
        yield server


def preload(hub, folder: Path, *overrides: str, before: str = "") -> subprocess.CompletedProcess:
    """python -m rwkv.preload of the server's data set; `before`: Python that is run first."""
    ours = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.endswith("_OFFLINE")} | ours
    code = f"{before}\nimport sys; from rwkv import preload; from rwkv.config import cli; sys.exit(cli.guarded(preload.main))"
    own = {o.partition("=")[0]: o for o in ("data.streaming=true", f"data.name={NAME}", *overrides)}
    args = ["data=hub", f"out={folder / 'out'}", *own.values()]
    return subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=300, check=False)


def documents(folder: Path) -> list[str]:
    """Of the only store that was made from the training split, as texts."""
    (store,) = (f for f in (folder / "out/data").iterdir() if f.is_dir() and not f.suffix and about(f)["documents"] > 1)
    tokens = np.fromfile(store / "tokens.bin", "<u2")
    return [bytes(part[part > 0] - 1).decode() for part in np.split(tokens.astype(np.uint8), np.flatnonzero(tokens == 0) + 1)[:-1]]


def rows_of(language: str, n: int = SHARDS * ROWS) -> list[str]:
    return [f"{language} {i}" for i in range(n)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_is_read_without_a_copy_of_it(processes, hub, tmp_path):
    done = preload(hub, tmp_path, f"data.processes={processes}")
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr
    assert documents(tmp_path) == rows_of("en")
    smallest = min(file.stat().st_size for file in hub.root.glob("main/*/train-*"))
    assert all(file.stat().st_size < smallest for file in (tmp_path / "home").rglob("*") if file.is_file())


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_configuration_split_and_revision(streaming, hub, tmp_path):
    done = preload(hub, tmp_path, "data.config=de", "data.revision=v2", "data.val_split=validation", "data.val_share=0", f"data.streaming={streaming}")
    assert done.returncode == 0 and "hub, validation\ndocuments 1" in done.stdout, done.stderr
    assert documents(tmp_path) == rows_of("de", ROWS)


def test_files_may_validate_it(hub, tmp_path):
    file = write(tmp_path / "mine.jsonl", '{"text": "my own"}\n' * 3)
    done = preload(hub, tmp_path, "data.config=de", f"data.val_path={file}", "data.val_share=0", "data.limit=5")
    assert done.returncode == 0 and "hub, validation\ndocuments 3\ntokens    21 " in done.stdout, done.stderr + done.stdout


def test_with_a_limit_the_rest_is_not_asked_for(hub, tmp_path):
    before = dict(hub.sent)
    assert preload(hub, tmp_path, "data.limit=7", "data.config=de", "data.processes=1").returncode == 0
    assert documents(tmp_path) == rows_of("de", 7)
    assert all(hub.sent.get(name) == before.get(name) for name in (f"main/de/train-0000{i}-of-00004.parquet" for i in (2, 3)))


def test_what_the_hub_does_not_have(hub, tmp_path):
    for wanted, message in {
        "data.revision=v9": "data.name=owner/set data.revision=v9: the hub has no such data set, or revision of it",
        "data.config=fr": "BuilderConfig 'fr' not found. Available: ['en', 'de']",
        "data.name=owner/other": "data.name=owner/other: the hub has no such data set",
    }.items():
        done = preload(hub, tmp_path, wanted)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_download_that_breaks_off_goes_on(hub, tmp_path):
    """What was prepared of it is not asked for again."""
    impatient = "import time; time.sleep = lambda seconds: None"  # the library tries again, later and later
    hub.broken = "train-00002"
    done = preload(hub, tmp_path, "data.processes=1", before=impatient)
    hub.broken = None
    assert done.returncode == 2 and "the download broke off after row 0" in done.stderr and "Traceback" not in done.stderr, done.stderr
    before = dict(hub.sent)
    assert preload(hub, tmp_path, "data.processes=1").returncode == 0
    assert documents(tmp_path) == rows_of("en")
    assert hub.sent["main/en/train-00001-of-00004.parquet"] == before["main/en/train-00001-of-00004.parquet"]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_what_is_prepared_is_used_where_there_is_no_network(streaming, hub, tmp_path):
    """As on a cluster, whose front node alone reaches the hub."""
    args = ("data.config=de", f"data.streaming={streaming}", "data.val_split=validation", "data.val_share=0")
    done = preload(hub, tmp_path, *args)
    assert done.returncode == 0, done.stderr
    made = {file.name for file in (tmp_path / "out/data").iterdir()}
    gone = SimpleNamespace(address="http://127.0.0.1:9")
    again = preload(gone, tmp_path, *args)
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr
    assert {file.name for file in (tmp_path / "out/data").iterdir()} == made
    if streaming == "true":  # else the library has its own copy
        assert again.stderr.count("the hub cannot be reached; what was prepared of it is used") == 2
        other = preload(gone, tmp_path, "data.config=en")
        assert other.returncode == 2 and "was not downloaded before" in other.stderr


# the ready sets, from copies in the form of their repositories

TEXTS = [{"text": f"a text {i}"} for i in range(30)]
CHATS = [{"prompt": "Hi", "messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Hello!"}]} for i in range(30)]
TASKS = [{"instruction": f"do {i}", "context": "", "response": "done", "category": "x"} for i in range(30)]
CONFIGS = "- config_name: {}\n  data_files: [{}]\n"


def copy_of(option: str, folder: Path) -> None:
    """A small data set whose files are named and formed as those on the hub."""
    lines = {"pile": ["train/00", "train/01", "val", "test"], "slimpajama": [f"{s}/chunk1/example_{s}_0" for s in ("train", "validation", "test")]}
    for name in lines.get(option, []):
        write(folder / f"{name}.jsonl.zst", zstandard.compress(b"".join(json.dumps(row).encode() + b"\n" for row in TEXTS)))
    if option == "minipile":
        for split in ("train", "validation", "test"):
            parquet(folder / f"data/{split}-00000-of-00001-0123456789abcdef.parquet", TEXTS)
    elif option == "fineweb_edu":
        files = {"default": "data/CC-MAIN-2013-20/train-00000-of-00001.parquet", "sample-10BT": "sample/10BT/000_00000.parquet"}
        for file in files.values():
            parquet(folder / file, TEXTS)
        configs = (CONFIGS.format(config, f"{{split: train, path: {Path(file).parent}/*}}") for config, file in files.items())
        write(folder / "README.md", f"---\nconfigs:\n{''.join(configs)}---\n")
    elif option == "dolly":
        write(folder / "databricks-dolly-15k.jsonl", "".join(json.dumps(row) + "\n" for row in TASKS))
    elif option == "ultrachat":
        splits = ("train_sft", "test_sft", "train_gen", "test_gen")
        for split in splits:
            parquet(folder / f"data/{split}-00000-of-00001-0123456789abcdef.parquet", CHATS)
        files = ", ".join(f"{{split: {split}, path: data/{split}-*}}" for split in splits)
        write(folder / "README.md", f"---\nconfigs:\n{CONFIGS.format('default', files)}---\n")


READY = {  # documents of training and validation in all, and the first
    "pile": (60, b"a text 0"),
    "minipile": (60, b"a text 0"),
    "slimpajama": (60, b"a text 0"),
    "fineweb_edu": (30, b"a text 0"),
    "dolly": (30, b"Instruction: do 0\n\nResponse: done"),
    "ultrachat": (60, b"User: Hi 0\n\nAssistant: Hello!\n\n"),
}


@pytest.mark.parametrize("option", READY)
def test_a_copy_of_a_ready_set_is_read_by_its_folder(option, tmp_path, monkeypatch):
    """As the message says that comes without a network: data.name=FOLDER, and nothing else changes."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    copy_of(option, tmp_path / "copy")
    split = data_of(f"data={option}").val_split
    made = prepare(tmp_path, f"data={option}", f"data.name={tmp_path / 'copy'}", f"data.val_share={0.0 if split else 0.2}")
    count, first = READY[option]
    assert texts(made)[0] == first
    assert (len(made.train), len(made.val)) == ((30, 30) if split else (count * 0.8, count * 0.2))
