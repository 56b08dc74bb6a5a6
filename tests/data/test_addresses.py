"""Sources at addresses: a web server, and S3 as moto serves it."""

import functools
import gzip
import json
import re
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv.data import join
from rwkv.errors import DataError
from tests.data.preparing import contents, store
from tests.data.sourcing import texts, write

WORDS = [f"record {i} " + "word " * (i % 50) for i in range(5000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in WORDS).encode()
FILES = {
    "data=jsonl": ["a.jsonl", "a.jsonl.gz"],
    "data=lines": ["a.txt"],
    "data=csv": ["a.csv"],
    "data=parquet": ["a.parquet"],
    "data=arrow": ["a.arrow", "a.arrows"],
}
BAD = b'{"text": "cut\n'


class Ranges(SimpleHTTPRequestHandler):
    """A folder, also parts of its files, as web servers that are not Python's own give them."""

    def do_GET(self):
        asked, file = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")), Path(self.translate_path(self.path))
        if not asked:
            return super().do_GET()
        content, first, last = file.read_bytes(), int(asked[1]), int(asked[2])
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def end_headers(self):
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write(folder / "a.jsonl", LINES + BAD)
    write(folder / "a.jsonl.gz", gzip.compress(LINES + BAD))
    write(folder / "a.txt", "\n".join(WORDS) + "\n\n")
    write(folder / "a.csv", "id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(WORDS)))
    write(folder / "sub/b.md", "a document")
    table = pa.table({"id": range(len(WORDS)), "text": WORDS})
    pq.write_table(table, folder / "a.parquet", row_group_size=500)
    for name, new in (("a.arrow", pa.ipc.new_file), ("a.arrows", pa.ipc.new_stream)):
        with new(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "a.jsonl", "in/a.jsonl")
    return folder


@pytest.fixture(scope="module")
def web(local):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(local)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", None
    server.shutdown()


@pytest.fixture(scope="module")
def s3(local):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    keys = {"endpoint_url": "http://{}:{}".format(*server.get_host_and_port())}
    client = boto3.client("s3", aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1", **keys)
    client.create_bucket(Bucket="bucket")
    for file in local.rglob("*.*"):
        client.upload_file(str(file), "bucket", f"set/{file.relative_to(local)}")
    yield "s3://bucket/set", {"key": "k", "secret": "s", **keys}
    server.stop()


@pytest.fixture(params=["web", "s3"])
def there(request):
    """(address of the folder, overrides)"""
    address, storage = request.getfixturevalue(request.param)
    return address, [f"data.storage={{{', '.join(f'{k}: {json.dumps(v)}' for k, v in storage.items())}}}"] if storage else []


def test_files_there_are_as_those_here(there, local):
    address, options = there
    for option, names in FILES.items():
        for name in names:
            here = texts(option, f"data.path={local / name}")
            assert texts(option, f"data.path={address}/{name}", *options) == here and len(here) >= 5000, name
    assert texts("data=files", f"data.path={address}/a.zip", *options) == texts("data=files", f"data.path={local}/a.zip")
    assert texts("data=text", f"data.path={address}/sub/", *options) == [b"a document"]


def test_processes_prepare_what_is_there(there, local, tmp_path, monkeypatch):
    """The store is that of the same files on a disk, and is found again."""
    monkeypatch.setattr(join, "SMALL", 0)
    monkeypatch.setattr(join, "TASK", (1, 1))  # each unit by itself
    address, options = there
    made = store(tmp_path / "there", "data=files", f"data.path={address}/", "data.processes=2", *options)
    a, b = contents(made), contents(store(tmp_path / "here", "data=files", f"data.path={local}", "data.processes=2"))
    assert {name for name in a if a[name] != b[name]} == {"about.json"}  # which has the path
    assert json.loads(a["about.json"])["bad"] == json.loads(b["about.json"])["bad"] != []
    before = (made / "about.json").stat().st_mtime_ns
    assert store(tmp_path / "there", "data=files", f"data.path={address}/", "data.processes=2", *options) == made
    assert (made / "about.json").stat().st_mtime_ns == before


def test_what_is_not_there_is_named(there):
    address, options = there
    with pytest.raises(DataError, match=r"data\.path=.*/none/: no .*file"):
        texts("data=text", f"data.path={address}/none/", *options)


def test_nobody_answers():
    with pytest.raises(DataError, match=r"data\.path=http://127\.0\.0\.1:1/a: no file in it, or it cannot be reached"):
        texts("data=text", "data.path=http://127.0.0.1:1/a")


def test_tokens_are_read_in_place_from_a_disk(tmp_path):
    with pytest.raises(DataError, match=r"data\.path=s3://a/b\.npy: an address; data=tokens is read in place"):
        store(tmp_path, "data=tokens", "data.path=s3://a/b.npy")
