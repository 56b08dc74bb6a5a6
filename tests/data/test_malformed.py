"""What becomes of input that is not as it should be: each file, and what is made of it, record by record.

A document is bytes; a bad record is text: where it is, and (a pattern for) what is said of it.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile

import pytest

from tests.data.sourcing import texts, write

GOOD = b'{"text": "fine"}\n'
BOM = b"\xef\xbb\xbf"
LONG = b"abcdefghij" * 20_000


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return out.getvalue()


def cut(content: bytes) -> bytes:
    return content[:-12]


def turned(content: bytes) -> bytes:
    """One byte in the middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def deep(levels: int) -> bytes:
    return b'{"text": ' + b"[" * levels + b"]" * levels + b"}\n"


# option, name of the file, its content, what it becomes
TABLE = [
    # text: a file is a document
    ("text", "a.txt", b"", ["a.txt: empty"]),
    ("text", "a.txt", b" \n\t\r\n", ["a.txt: empty"]),
    ("text", "a.txt", BOM, ["a.txt: empty"]),
    ("text", "a.txt", BOM + b"hi", [b"hi"]),
    ("text", "a.txt", b"a\r\nb\r\n", [b"a\r\nb\r\n"]),
    ("text", "a.txt", b"\xff\xe9 latin", [b"\xff\xe9 latin"]),
    ("text", "a.txt", "hi".encode("utf-16"), [r"a.txt: not text \(it holds zero bytes\)"]),
    ("text", "a.txt", b"a\0b", ["a.txt: not text"]),
    ("text", "a.txt", LONG, [LONG]),
    ("text", "a.exe", b"any ending", [b"any ending"]),
    ("text", "a.txt.gz", gzip.compress(b"packed"), [b"packed"]),
    ("text", "a.txt.gz", gzip.compress(b"one ") + gzip.compress(b"two"), [b"one two"]),
    ("text", "a.txt.gz", cut(gzip.compress(LONG)), ["a.txt.gz: the compressed data ends early"]),
    ("text", "a.txt.gz", turned(gzip.compress(bytes(range(1, 256)) * 9)), ["a.txt.gz: the compressed data is damaged"]),
    ("text", "a.txt.gz", b"not packed at all", ["a.txt.gz: the compressed data is damaged"]),
    ("text", "a.txt.gz", b"", ["a.txt.gz: empty"]),
    ("text", "a.txt.bz2", cut(bz2.compress(LONG)), ["a.txt.bz2: the compressed data ends early"]),
    ("text", "a.txt.xz", cut(lzma.compress(LONG)), ["a.txt.xz: the compressed data ends early"]),
    ("text", "a.zip", zipped(x__txt=b"one", y__txt=b""), [b"one", "a.zip/y.txt: empty"]),
    ("text", "a.zip", b"PK, but no archive", ["a.zip: is no zip archive that can be read"]),
    ("text", "a.zip", zipped(), ["a.zip: an empty zip archive"]),
    # lines: a line is a document
    ("lines", "a.txt", b"", ["a.txt: empty"]),
    ("lines", "a.txt", b"one\n\n  \ntwo", [b"one", "a.txt, line 2: empty", "a.txt, line 3: empty", b"two"]),
    ("lines", "a.txt", BOM + b"one\r\ntwo\r\n", [b"one", b"two"]),
    ("lines", "a.txt", b"one\nt\0wo\nthree", [b"one", "a.txt, line 2: not text", b"three"]),
    ("lines", "a.txt", b"one\rtwo\xff", [b"one\rtwo\xff"]),
    ("lines", "a.txt.gz", cut(gzip.compress(b"one\n" + LONG)), [b"one", "after a.txt.gz, line 1: the compressed data ends early"]),
    # JSON: a record a line
    ("jsonl", "a.jsonl", b"", ["a.jsonl: empty"]),
    ("jsonl", "a.jsonl", b"\n \n", ["a.jsonl: empty"]),
    ("jsonl", "a.jsonl", b"\n" + GOOD + b"\r\n" + GOOD, [b"fine", b"fine"]),
    ("jsonl", "a.jsonl", GOOD + b"{bad}\n" + GOOD, [b"fine", "a.jsonl, line 2: not JSON: .* at character 2", b"fine"]),
    ("jsonl", "a.jsonl", GOOD + GOOD[:12], [b"fine", "a.jsonl, line 2: not JSON: Unterminated string"]),
    ("jsonl", "a.jsonl", b'{"text": "a\xffb"}', [r"a.jsonl, line 1: not UTF-8 \(byte 12 of it is 0xff\)"]),
    ("jsonl", "a.jsonl", b'{"text": "a\0b"}', ["a.jsonl, line 1: not JSON: Invalid control character"]),
    ("jsonl", "a.jsonl", b'{"text": "a\tb"}', ["a.jsonl, line 1: not JSON: Invalid control character"]),
    ("jsonl", "a.jsonl", b'{"text": "a\\u0000b"}', [b"a\0b"]),
    ("jsonl", "a.jsonl", b'{"text": "\\ud800"}', ["a.jsonl, line 1: not text: it holds half a character"]),
    ("jsonl", "a.jsonl", b'{"text": "\\ud83c\\udf89"}', ["🎉".encode()]),
    ("jsonl", "a.jsonl", BOM + GOOD, [b"fine"]),
    ("jsonl", "a.jsonl", b'{"text": "one\\ntwo\\r\\n"}', [b"one\ntwo\r\n"]),
    ("jsonl", "a.jsonl", b'{"text": ""}', ["a.jsonl, line 1: empty"]),
    ("jsonl", "a.jsonl", b'{"text": " \\n"}', ["a.jsonl, line 1: empty"]),
    ("jsonl", "a.jsonl", b'{"text": null}', ["a.jsonl, line 1: its text is null, not text"]),
    ("jsonl", "a.jsonl", b'{"text": NaN}', ["a.jsonl, line 1: its text is a number, not text"]),
    ("jsonl", "a.jsonl", b'{"text": 12}', ["a.jsonl, line 1: its text is a number, not text"]),
    ("jsonl", "a.jsonl", b'{"text": true}', ["a.jsonl, line 1: its text is true or false, not text"]),
    ("jsonl", "a.jsonl", b'{"text": ["a", "b"]}', ["a.jsonl, line 1: its text is a list, not text"]),
    ("jsonl", "a.jsonl", b'{"text": {"a": "b"}}', ["a.jsonl, line 1: its text is a mapping, not text"]),
    ("jsonl", "a.jsonl", b'{"text": "one", "text": "two"}', [b"two"]),
    ("jsonl", "a.jsonl", b'{"content": "a", "id": 1}', ["a.jsonl, line 1: of no known form: its keys are content, id"]),
    ("jsonl", "a.jsonl", b"{}", ["a.jsonl, line 1: of no known form: its keys are none"]),
    (
        "jsonl",
        "a.jsonl",
        b'"text"\n12\nnull\ntrue',
        [f"a.jsonl, line {i}: {k}, not a mapping" for i, k in enumerate(("text", "a number", "null", "true or false"), 1)],
    ),
    ("jsonl", "a.jsonl", b'[{"text": "a"}]', [r"a.jsonl, line 1: a list, not a mapping .*ends in \.json"]),
    ("jsonl", "a.jsonl", b'{"text": "a"} {"text": "b"}', ["a.jsonl, line 1: not JSON: Extra data"]),
    ("jsonl", "a.jsonl", deep(100_000) + GOOD, ["a.jsonl, line 1: JSON nested too deeply", b"fine"]),
    ("jsonl", "a.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n" + GOOD, ["a.jsonl, line 1: not JSON that can be read", b"fine"]),
    ("jsonl", "a.jsonl", json.dumps({"text": LONG.decode()}).encode(), [LONG]),
    ("jsonl", "a.jsonl.gz", cut(gzip.compress(GOOD + LONG)), [b"fine", "after a.jsonl.gz, line 1: the compressed data ends early"]),
    ("jsonl", "a.jsonl.gz", GOOD, ["a.jsonl.gz: the compressed data is damaged"]),
    # JSON: an array, or values over several lines
    ("jsonl", "a.json", b'[{"text": "a"},\n {"text": "b"}]', [b"a", b"b"]),
    ("jsonl", "a.jsonl", b'[\n{"text": "a"},\n{"text": "b"}\n]', [b"a", b"b"]),
    ("jsonl", "a.json", b'{\n "text": "a, [b] {c} \\"d\\""\n}', [b'a, [b] {c} "d"']),
    ("jsonl", "a.json", GOOD + GOOD, [b"fine", b"fine"]),
    ("jsonl", "a.json", b'[{"text": "a"}, {"text": x}, {"text": "b"}]', [b"a", "a.json, record 2: not JSON", b"b"]),
    ("jsonl", "a.json", b'[{"text": "a"}, {"text": "b', [b"a", "a.json, after record 1: the file ends in the middle"]),
    ("jsonl", "a.json", b'[{"text": "a"}', ["a.json: the file ends in the middle|a.json, after record 0: the file ends"]),
    ("jsonl", "a.json", b'[{"text": "a"},]', [b"a"]),
    ("jsonl", "a.json", b'[{"text": "a"},, 5]', [b"a", "a.json, record 2: not JSON", "a.json, record 3: a number"]),
    ("jsonl", "a.json", b'[{"text": "a"}] tail', [b"a", "a.json, record 2: not JSON"]),
    ("jsonl", "a.json", b"[]", ["a.json: empty"]),
    ("jsonl", "a.json", b" ", ["a.json: empty"]),
    ("jsonl", "a.json", b"]]}", ["a.json, record 1: not JSON", "a.json, record 2: not JSON", "a.json, record 3: not JSON"]),
    # CSV
    ("csv", "a.csv", b"", ["a.csv: empty"]),
    ("csv", "a.csv", b"text,b\n", ["a.csv: no rows below the first line"]),
    ("csv", "a.csv", b'text,b\n"one\ntwo, ""three""",x\r\nfour,y', [b'one\ntwo, "three"', b"four"]),
    ("csv", "a.csv", BOM + b"text\r\none\r\n\r\ntwo", [b"one", b"two"]),
    ("csv", "a.csv", b"text,b\none\ntwo,x,y\nthree,z", ["a.csv, line 2: 1 fields, the first line has 2", "a.csv, line 3: 3 fields", b"three"]),
    ("csv", "a.csv", b'text,b\n"one"x,y\ntwo,z', ["a.csv, line 2: not CSV: ',' expected after '\"'", b"two"]),
    ("csv", "a.csv", b'text\n"one\ntwo\n', ["a.csv, line 2: not CSV: unexpected end of data"]),
    ("csv", "a.csv", b"text\nca\xe9\ntwo", ["a.csv, line 2: not text: it holds .* bytes that are not UTF-8", b"two"]),
    ("csv", "a.csv", b"text\no\0ne\ntwo", [r"a.csv, line 2: not text \(it holds zero bytes\)", b"two"]),
    ("csv", "a.csv", b"text,text\na,b", ["a.csv: two columns named text"]),
    ("csv", "a.csv", b",\na,b", ["a.csv: no names of columns in the first line"]),
    ("csv", "a.csv", b"\x89PNG\x0d\x0a", ["a.csv: not CSV in UTF-8"]),
    ("csv", "a.csv", b"a;text\n1;x,y", [b"x,y"]),
    ("csv", "a.tsv", b"a\ttext\n1\tx,y", [b"x,y"]),
    ("csv", "a.csv", b"text,b\n,x\n", ["a.csv, line 2: empty"]),
    ("csv", "a.csv", b"body\nx", ["a.csv, line 2: of no known form: its keys are body"]),
    # tables in binary form
    ("parquet", "a.parquet", b"", ["a.parquet: cannot be read"]),
    ("parquet", "a.parquet", b"PAR1 and nothing else PAR1", ["a.parquet: cannot be read"]),
    ("parquet", "a.parquet", GOOD, ["a.parquet: cannot be read: .*not a parquet file"]),
    ("parquet", "a.parquet.gz", gzip.compress(b"PAR1"), ["a.parquet.gz: a parquet file compressed as a whole: unpack it first"]),
    ("arrow", "a.arrow", b"", ["a.arrow: cannot be read|a.arrow: empty"]),
    ("arrow", "a.arrow", b"ARROW1 and nothing", ["a.arrow: cannot be read"]),
    ("arrow", "a.arrow", GOOD, ["a.arrow: cannot be read"]),
    # any format, by endings
    ("files", "a.xyz", b"what", [r"a.xyz: its ending \.xyz is of no known format"]),
    ("files", "README", b"what", [r"README: its ending \(none\) is of no known format"]),
    ("files", "a.JSONL", GOOD, [b"fine"]),
    ("files", "a.parquet", GOOD, ["a.parquet: cannot be read"]),
    ("files", "a.txt", GOOD, [GOOD]),
    ("files", "a.zip", zipped(a__jsonl=GOOD, b__bin=b"x"), [b"fine", "a.zip/b.bin: its ending .bin"]),
]


def test_the_table_is_long():
    assert len(TABLE) >= 60


@pytest.mark.parametrize(("option", "name", "content", "want"), TABLE, ids=[f"{i}-{row[0]}-{row[1]}" for i, row in enumerate(TABLE)])
def test_malformed(option, name, content, want, tmp_path):
    got = texts(f"data={option}", f"data.path={write(tmp_path / name, content)}")
    assert len(got) == len(want), got
    for one, wanted in zip(got, want, strict=True):
        if isinstance(wanted, bytes):
            assert one == wanted, one if isinstance(one, str) else one[:100]
        else:
            assert isinstance(one, str) and re.match(wanted, one), one


def test_a_folder_named_like_a_file(tmp_path):
    write(tmp_path / "a.jsonl" / "b.jsonl", GOOD)
    assert texts("data=jsonl", f"data.path={tmp_path}/a.jsonl") == [b"fine"]


def test_a_link_to_nothing_and_a_pipe(tmp_path):
    import os

    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "b.txt")
    write(tmp_path / "c.txt", "fine")
    assert texts("data=text", f"data.path={tmp_path}") == ["a.txt: cannot be read: No such file or directory", "b.txt: not a regular file", b"fine"]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "fine")

    def refuse(*args):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("rwkv.data.sources.storage.open", refuse, raising=False)
    for option in ("text", "lines", "csv", "jsonl"):
        assert texts(f"data={option}", f"data.path={file}") == ["a.txt: cannot be read: Permission denied"]


def test_a_line_too_long_is_passed_over_and_not_held(tmp_path, monkeypatch):
    from rwkv.data.sources import text

    monkeypatch.setattr(text, "LONGEST", 1000)
    file = write(tmp_path / "a.jsonl", GOOD + b'{"text": "' + LONG + b'"}\n' + GOOD)
    assert texts("data=jsonl", f"data.path={file}")[::2] == [b"fine", b"fine"]
    assert "line 2: longer than" in texts("data=jsonl", f"data.path={file}")[1]


def test_a_quote_that_is_never_closed(tmp_path, monkeypatch):
    from rwkv.data.sources import tables

    monkeypatch.setattr(tables, "LONGEST_FIELD", 1000)
    file = write(tmp_path / "a.csv", b'text\nfine\n"never closed\n' + b"word word\n" * 200 + b"fine\n")
    got = texts("data=csv", f"data.path={file}")
    assert got[0] == got[-1] == b"fine" and got[1].startswith("a.csv, line 3: not CSV: field larger than field limit")
