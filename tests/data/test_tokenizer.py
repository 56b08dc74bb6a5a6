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

    fast = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "t.json"))
    tok = build("hf", str(tmp_path / "t.json"))
    assert (list(tok.encode(b"a b z")), tok.vocab_size) == ([1, 2, 3], 4)
    assert tok.decode([1, 2, 0]) == b"a b"
