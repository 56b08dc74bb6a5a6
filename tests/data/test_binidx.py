"""The official store of tokens: what is written is read by RWKV-LM's rules, what others wrote is read in place."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from rwkv.data import binidx, inplace
from rwkv.data import store as stores
from rwkv.errors import DataError
from tests.data.preparing import about, prepare, store, write_binidx, write_folder


def rwkv_lm_reader(prefix: Path) -> list[np.ndarray]:
    """The documents, by the format's description alone (RWKV-LM's binidx.py: sizes, pointers, frombuffer at a pointer)."""
    index, tokens = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<Q", index[9:17]) == (1,)
    dtype = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}[index[17]]
    n, m = struct.unpack("<QQ", index[18:34])
    sizes = np.frombuffer(index, dtype=np.int32, count=n, offset=34)
    pointers = np.frombuffer(index, dtype=np.int64, count=n, offset=34 + sizes.nbytes)
    doc_idx = np.frombuffer(index, dtype=np.int64, count=m, offset=34 + sizes.nbytes + pointers.nbytes)
    assert 34 + sizes.nbytes + pointers.nbytes + doc_idx.nbytes == len(index)
    assert doc_idx.tolist() == list(range(n + 1))
    return [np.frombuffer(tokens, dtype=dtype, count=size, offset=pointer) for pointer, size in zip(pointers, sizes, strict=True)]


def random_documents(seed: int, count: int, vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(1, vocab, rng.integers(1, 50)), 0) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_by_rwkv_lm(tmp_path, seed):
    folder = write_folder(tmp_path / "text", 40, seed)
    made = store(tmp_path, "data=text", f"data.path={folder}")
    ours = prepare(tmp_path, "data=text", f"data.path={folder}").train
    theirs = rwkv_lm_reader(made / "tokens")
    assert len(theirs) == len(ours) == 40
    for i, document in enumerate(theirs):
        assert (document == ours.document(i)).all() and document[-1] == 0 and (document[:-1] > 0).all()


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_an_index_of_many_blocks(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(binidx, "BLOCK", 7)
    sizes = np.random.default_rng(0).integers(1, 30, 100)
    with (tmp_path / "x.idx").open("wb") as file:
        binidx.write_index(file, sizes, np.dtype(dtype))
    np.arange(sizes.sum()).astype(dtype).tofile(tmp_path / "x.bin")
    documents = rwkv_lm_reader(tmp_path / "x")
    assert [len(d) for d in documents] == sizes.tolist() and (np.concatenate(documents) == np.arange(sizes.sum())).all()
    starts, read = (np.concatenate(x) for x in zip(*binidx.documents(binidx.read(tmp_path / "x")), strict=True))
    assert (read == sizes).all() and (starts == np.cumsum(sizes) - sizes).all()


@pytest.mark.parametrize("code", [1, 4, 5, 8])
@pytest.mark.parametrize("name", ["set", "set.bin", "set.idx"])
def test_foreign_files_are_read_in_place(tmp_path, code, name):
    documents = random_documents(code, 30, 250)
    write_binidx(tmp_path / "set", documents, code)
    corpus = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / name}").train
    assert corpus.tokens.base.filename == tmp_path / "set.bin" and corpus.trained is None
    assert [corpus.document(i).tolist() for i in range(len(corpus))] == [d.tolist() for d in documents]
    (folder,) = [f for f in (tmp_path / "out/data").iterdir() if f.is_dir()]
    assert sorted(f.name for f in folder.iterdir()) == ["about.json", "sizes.i32", "starts.i64"]


def test_names_with_dots_are_prefixes(tmp_path):
    write_binidx(tmp_path / "pile.v1.2_text_document", random_documents(0, 3, 9))
    assert len(prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'pile.v1.2_text_document'}").train) == 3


@pytest.mark.parametrize("seed", range(20))
def test_bounds_group_sequences_into_documents(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(binidx, "BLOCK", 5)
    rng = random.Random(seed)
    sequences = random_documents(seed, rng.randint(2, 40), 100)
    inner = sorted(rng.sample(range(1, len(sequences)), rng.randint(0, len(sequences) - 1)))
    bounds = [0, *inner, *inner[-1:], len(sequences)]  # an empty document too
    write_binidx(tmp_path / "set", sequences, 8, sorted(bounds))
    corpus = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}").train
    wanted = [np.concatenate(sequences[a:b]).tolist() for a, b in zip([0, *inner], [*inner, len(sequences)], strict=True)]
    assert [corpus.document(i).tolist() for i in range(len(corpus))] == wanted


def test_a_document_longer_than_int32_widens_the_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LONGEST", 30)
    monkeypatch.setattr(inplace, "BLOCK", 8)
    ids = np.array([*[5] * 6, 0, *[3] * 40, 0, 7, 0], np.uint16)
    np.save(tmp_path / "x.npy", ids)
    corpus = prepare(tmp_path, "data=tokens", f"data.path={tmp_path / 'x.npy'}").train
    assert corpus.sizes.dtype == np.int64 and corpus.sizes.tolist() == [7, 41, 2] and corpus.starts.tolist() == [0, 7, 48]


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<u4", "<i8"])
def test_npy_arrays_are_read_in_place(tmp_path, dtype):
    np.save(tmp_path / "ids.npy", np.array([5, 6, 0, 0, 7, 8, 9, 0, 1, 2]).astype(dtype))
    p = prepare(tmp_path, "data=tokens", f"data.path={tmp_path / 'ids.npy'}")
    assert [p.train.document(i).tolist() for i in range(3)] == [[5, 6, 0], [7, 8, 9, 0], [1, 2]] and len(p.train) == 3
    assert p.train.tokens.base.filename == tmp_path / "ids.npy"
    assert "1 dropped" in p.line  # the end token alone


def test_the_index_is_made_once_until_the_file_changes(tmp_path, monkeypatch):
    write_binidx(tmp_path / "set", random_documents(0, 30, 250))
    first = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")
    monkeypatch.setattr(inplace, "index", None)  # not called again
    again = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")
    assert again.fingerprint == first.fingerprint
    monkeypatch.undo()
    write_binidx(tmp_path / "set", random_documents(1, 30, 250))
    assert prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}").fingerprint != first.fingerprint


def test_windows_and_lengths_choose_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(binidx, "BLOCK", 4)
    documents = random_documents(3, 30, 250)
    write_binidx(tmp_path / "set", documents)
    options = ("data.first=3", "data.limit=20", "data.min_tokens=10", "data.max_tokens=40")
    p = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}", *options)
    wanted = [d.tolist() for d in documents[3:23] if 10 <= len(d) <= 40]
    assert [p.train.document(i).tolist() for i in range(len(p.train))] == wanted
    (made,) = [f for f in (tmp_path / "out/data").iterdir() if f.is_dir()]
    assert sum(about(made)["dropped"].values()) == 20 - len(wanted) and about(made)["tokens"] == sum(map(len, wanted))


def _set(file: Path, at: int, value: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[at : at + len(value)] = value
    file.write_bytes(content)


BROKEN = {
    "no .bin": (lambda p: Path(f"{p}.bin").unlink(), "set.bin: No such file"),
    "no .idx": (lambda p: Path(f"{p}.idx").unlink(), "set.idx: No such file"),
    "magic": (lambda p: _set(Path(f"{p}.idx"), 0, b"PARQUET"), "set.idx: not the index of a binidx"),
    "header cut": (lambda p: Path(f"{p}.idx").write_bytes(Path(f"{p}.idx").read_bytes()[:20]), "ends inside its header"),
    "version": (lambda p: _set(Path(f"{p}.idx"), 9, b"\2"), "version 2"),
    "dtype": (lambda p: _set(Path(f"{p}.idx"), 17, b"\7"), "dtype code 7"),
    "idx cut": (lambda p: Path(f"{p}.idx").write_bytes(Path(f"{p}.idx").read_bytes()[:-8]), r"its header \(10 sequences, 11 bounds\) asks for"),
    "bin cut": (lambda p: Path(f"{p}.bin").write_bytes(Path(f"{p}.bin").read_bytes()[:-6]), "sequence 9, .* is not inside of .*truncated"),
    "bin odd": (lambda p: Path(f"{p}.bin").write_bytes(Path(f"{p}.bin").read_bytes()[:-1]), "bytes for 10 sequences of uint16"),
    "bin empty": (lambda p: Path(f"{p}.bin").write_bytes(b""), "0 bytes for 10 sequences"),
    "bin longer": (lambda p: Path(f"{p}.bin").write_bytes(Path(f"{p}.bin").read_bytes() + b"\1\0"), "not of one store"),
    "pointer out": (lambda p: _set(Path(f"{p}.idx"), 34 + 40 + 16, struct.pack("<q", 10**9)), "sequence 2, .* from byte 1,000,000,000"),
    "pointer negative": (lambda p: _set(Path(f"{p}.idx"), 34 + 40 + 16, struct.pack("<q", -2)), "sequence 2, .* from byte -2"),
    "pointer odd": (lambda p: _set(Path(f"{p}.idx"), 34 + 40 + 16, struct.pack("<q", 3)), "sequence 2"),
    "size negative": (lambda p: _set(Path(f"{p}.idx"), 34, struct.pack("<i", -1)), "sequence 0, -1 tokens"),
    "sizes do not add up": (lambda p: _set(Path(f"{p}.idx"), 34, struct.pack("<i", 1)), "not of one store"),
    "bounds": (lambda p: _set(Path(f"{p}.idx"), 34 + 120, struct.pack("<q", 5)), "bounds do not lead"),
    "bounds fall": (lambda p: _set(Path(f"{p}.idx"), 34 + 120 + 16, struct.pack("<q", 9)), "bounds do not lead"),
    "id too high": (lambda p: _set(Path(f"{p}.bin"), 8, b"\xff\xff"), "token 4 has the id 65535, outside of the vocabulary of 257"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_stores_are_named(tmp_path, name):
    damage, message = BROKEN[name]
    write_binidx(tmp_path / "set", [np.array([7] * 9 + [0])] * 10)
    damage(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")


def test_grouped_sequences_must_follow_each_other(tmp_path):
    write_binidx(tmp_path / "set", [np.array([7] * 9 + [0])] * 10, bounds=[0, 4, 10])
    _set(Path(f"{tmp_path / 'set'}.idx"), 34 + 40, struct.pack("<qq", 20, 0))
    with pytest.raises(DataError, match="do not lie one after the other"):
        prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")


def test_negative_ids_are_outside_of_the_vocabulary(tmp_path):
    write_binidx(tmp_path / "set", [np.array([7, -3, 0])], code=4)
    with pytest.raises(DataError, match="token 1 has the id -3"):
        prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda f: f.write_bytes(b"text"), "not a readable .npy"),
        (lambda f: np.savez(f.with_suffix(""), a=np.arange(3)) or f.with_suffix(".npz").rename(f), "archive of several"),
        (lambda f: np.save(f, np.ones((2, 3), np.uint16)), r"uint16\[2, 3\]"),
        (lambda f: np.save(f, np.ones(3, np.float32)), "float32"),
        (lambda f: np.save(f, np.zeros(0, np.uint16)), r"uint16\[0\]"),
        (lambda f: np.save(f, np.array(["a"], dtype=object)), "not a readable .npy"),
        (lambda f: np.save(f, np.array([1, 300, 0], np.uint16)), "token 1 has the id 300"),
        (lambda f: np.save(f, np.array([0, 0], np.uint16)), "no document left.*2 shorter than min_tokens=2"),
        (lambda f: np.save(f, np.arange(1000)) or f.write_bytes(f.read_bytes()[:900]), "not a readable .npy"),
        (lambda f: f.mkdir(), "a folder"),
        (lambda f: None, "no such file"),
    ],
)
def test_broken_arrays_are_named(tmp_path, save, message):
    save(tmp_path / "x.npy")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, "data=tokens", f"data.path={tmp_path / 'x.npy'}")


def test_a_mask_beside_a_foreign_store(tmp_path):
    write_binidx(tmp_path / "set", [np.array([1, 2, 3, 0]), np.array([4, 5, 0])])
    np.array([1, 0, 0, 1, 0, 1, 1], bool).tofile(tmp_path / "set.trained")
    p = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")
    assert p.train.trained.tolist() == [True, False, False, True, False, True, True] and "3 of them trained" in p.line
    np.ones(6, bool).tofile(tmp_path / "set.trained")
    with pytest.raises(DataError, match="6 bytes for 7 tokens"):
        prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 'set'}")
