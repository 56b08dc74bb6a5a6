"""Tokenizers: lossless, greedy, and told apart by their fingerprints."""

import random

import pytest

from rwkv.data.tokenizer import Bytes, World, build
from rwkv.errors import ConfigError


@pytest.fixture(scope="module")
def world():
    return World()


def test_bytes_are_the_first_world_ids(world):
    text = bytes(range(256))
    assert list(Bytes().encode(text)) == list(range(1, 257))
    assert all(world.encode(bytes([b]))[0] == b + 1 for b in range(256))
    assert Bytes().decode(list(range(257))) == text


# ids published with the vocabulary
@pytest.mark.parametrize(("text", "ids"), [("\n\n", [261]), ("User:", [24281, 59]), ("Assistant:", [5585, 41693, 59]), ("\x17", [24])])
def test_world_samples(world, text, ids):
    assert list(world.encode(text.encode())) == ids


def test_world_is_the_greedy_longest_match(world):
    pick = random.Random(0)
    pieces = list(world.ids)
    longest = max(map(len, pieces))
    for _ in range(60):
        text = b"".join(pick.choice(pieces) for _ in range(20)) if pick.random() < 0.5 else pick.randbytes(200)
        want, at = [], 0
        while at < len(text):
            n = next(n for n in range(min(longest, len(text) - at), 0, -1) if text[at : at + n] in world.ids)
            want.append(world.ids[text[at : at + n]])
            at += n
        assert list(world.encode(text)) == want
        assert world.decode(want) == text


def test_world_vocabulary(world):
    assert (len(world.tokens), min(world.tokens), max(world.tokens)) == (65529, 1, 65529)
    assert world.encode("天地玄黃 🎉".encode()).max() < 65530


def test_bad_vocabulary(tmp_path):
    (tmp_path / "v.txt").write_text("1 'a' 1\n2 'bc' 3\n")
    with pytest.raises(ConfigError, match=r"v\.txt, line 2: not a line of an RWKV World vocabulary"):
        World(str(tmp_path / "v.txt"))


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
