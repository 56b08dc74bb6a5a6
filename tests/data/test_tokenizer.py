"""What holds for every tokenizer: batches, other processes, fingerprints."""

import multiprocessing
import pickle

import pytest

from rwkv.data.tokenizer import Bytes, build
from tests.data.test_huggingface import byte_level


@pytest.fixture(params=["bytes", "world", "hf"])
def tok(request, tmp_path):
    return build(request.param, byte_level(tmp_path / "t.json", "<|end|>") if request.param == "hf" else None)


def test_bytes():
    text = bytes(range(256))
    assert list(Bytes().encode(text)) == list(range(1, 257))
    assert Bytes().decode(list(range(257))) == text


def test_batches(tok):
    texts = [b"a text", b"", "天地🎉".encode(), b"\n" * 300]
    ids, sizes = tok.encode_batch(texts)
    assert (ids.dtype, sizes.dtype) == ("uint16", "int64")
    each = [tok.encode(text) for text in texts]
    assert [list(x) for x in each] == [list(ids[end - n : end]) for n, end in zip(sizes, sizes.cumsum(), strict=True)]
    assert [tok.decode(x) for x in each] == texts
    ids, sizes = tok.encode_batch(texts, end=True)
    assert [list(ids[end - n : end]) for n, end in zip(sizes, sizes.cumsum(), strict=True)] == [[*x, 0] for x in each]
    assert (ids.dtype, sizes.dtype, len(ids)) == ("uint16", "int64", sizes.sum())
    ids, sizes = tok.encode_batch([])
    assert (len(ids), len(sizes), ids.dtype) == (0, 0, "uint16")


def test_no_text_and_the_end(tok):
    assert len(tok.encode(b"")) == 0 and tok.encode(b"").dtype == "uint16"
    assert tok.decode([]) == tok.decode([0]) == b""


def test_by_pickle(tok):
    data = pickle.dumps(tok)
    assert len(data) < 500  # its settings, not its vocabulary
    again = pickle.loads(data)
    assert (again.fingerprint, again.vocab_size) == (tok.fingerprint, tok.vocab_size)


def test_in_a_spawned_process():
    tok, text = build("world", None), "Ein Text, 天地🎉".encode()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert list(pool.apply(tok.encode, (text,))) == list(tok.encode(text))


def test_fingerprints_differ(tmp_path):
    kinds = {"bytes": None, "world": None, "hf": byte_level(tmp_path / "t.json", "<|end|>")}
    assert len({build(kind, path).fingerprint for kind, path in kinds.items()}) == 3
