"""Data settings by the command a user types: mixes, rows at once, packed documents, data that has changed."""

import json
import re

import pytest

from rwkv import train
from rwkv.config import cli
from tests.conftest import the_run, tiny, write_text
from tests.training.runs import losses


def run(*args: str) -> int:
    return cli.guarded(train.main, list(args))


def records(out):
    return [json.loads(line) for line in (the_run(out) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def folders(tmp_path):
    for name, count, length in (("long", 4, 3000), ("short", 60, 120)):
        (tmp_path / name).mkdir()
        for i in range(count):
            write_text(tmp_path / name / f"{i}.txt", length + 7 * i)
    return tmp_path


def mix(folder, epochs="null") -> str:
    return (
        f"data.mix={{long: {{data: text, path: {folder}/long, weight: 3, val_share: 0.2}}, "
        f"short: {{data: text, path: {folder}/short, epochs: {epochs}, min_tokens: 5}}}}"
    )


@pytest.mark.parametrize("layout", ["layout=stream", "layout=document", "layout=fixed"])
def test_a_mix_has_its_shares_and_each_source_its_losses(layout, folders):
    out = folders / "out"
    assert run(*tiny("data=mix", f"out={out}", layout, "trainer.tokens=16k"), mix(folders)) == 0
    found = records(out)
    each = [{k.removeprefix("train/loss/"): v for k, v in r.items() if k.startswith("train/loss/")} for r in found]
    assert {name for r in each for name in r} == {"long", "short"}
    assert {"val/loss", "val/loss/long", "val/loss/short"} <= found[-1].keys()
    for r, parts in zip(found, each, strict=True):
        if parts:
            assert min(parts.values()) - 1e-6 <= r["train/loss"] <= max(parts.values()) + 1e-6
    sources = json.loads((the_run(out) / "summary.json").read_text())["sources"]
    assert sources["long"]["tokens"] / sources["short"]["tokens"] == pytest.approx(3, rel=0.35)  # to within a document


def test_a_source_that_may_not_be_read_again_ends_the_data(folders, capsys):
    args = tiny("data=mix", f"out={folders / 'out'}", "trainer.tokens=64k")
    one = f"data.mix={{short: {{data: text, path: {folders}/short, epochs: 1}}}}"
    assert run(*args, one) == 2
    assert "the data has ended after" in capsys.readouterr().err


def test_rows_at_once_change_memory_not_the_result(folders):
    found = []
    for name, at_once in (("all", "null"), ("one", 1), ("two", 2)):
        args = tiny("data=text", f"data.path={folders}/short", f"out={folders / name}", "layout.rows=3", "precision=fp64", f"layout.at_once={at_once}")
        assert run(*args) == 0
        found.append(losses(the_run(folders / name)))
    assert [s for s, _ in found[0]] == [s for s, _ in found[1]]
    for other in found[1:]:
        assert [x for _, x in other] == pytest.approx([x for _, x in found[0]], rel=1e-7)  # as many digits are written


def test_packed_documents_fill_their_rows(folders):
    args = tiny("data=text", f"data.path={folders}/short", f"out={folders / 'out'}", "layout=document", "layout.rows=4", "ctx_len=512", "trainer.tokens=16k")
    assert run(*args) == 0
    fills = [r["fill"] for r in records(folders / "out") if "fill" in r]
    assert all(0 < f <= 1 for f in fills) and sum(fills) / len(fills) > 0.7  # a document alone fills a quarter of its chunk


def test_training_says_what_was_dropped_and_where_the_prepared_data_lies(tmp_path, capsys):
    lines = [json.dumps({"text": f"{i} the quick brown fox jumps over the lazy dog"}) for i in range(60)]
    (tmp_path / "books.jsonl").write_text("\n".join([*lines, "{broken", '{"text": 5}']))
    assert run(*tiny("data=jsonl", f"data.path={tmp_path}/books.jsonl", f"out={tmp_path / 'out'}")) == 0
    assert re.search(r"store  60 documents, [\d,]+ tokens, 2 dropped \(.*/data/books-", capsys.readouterr().out)


@pytest.mark.parametrize("answer", ["refuse", "accept"])
def test_data_that_has_changed(answer, folders, capsys):
    args = tiny("data=text", f"data.path={folders}/short", f"out={folders / 'out'}", "checkpoint.every=1", f"checkpoint.new_data={answer}")
    assert run(*args) == 0
    (the_run(folders / "out") / "summary.json").unlink()  # as a run that was killed
    before = losses(the_run(folders / "out"))
    write_text(folders / "short/0.txt", 900)
    code = run(*args)
    assert code == (2 if answer == "refuse" else 0)
    if answer == "refuse":
        assert "the data has changed since it was written" in capsys.readouterr().err
    assert losses(the_run(folders / "out"))[: len(before)] == before


BAD_MIXES = {
    "no sources": (["data=mix"], "data=mix needs sources"),
    "not by name": (["data=mix", "data.mix=[a, b]"], "wanted sources by name"),
    "no such option": (["data=mix", "data.mix={a: {data: jsnol}}"], "data.mix.a.data=jsnol: there is no such option"),
    "no path": (["data=mix", "data.mix={a: {data: text}}"], "needs data.mix.a.path"),
    "unknown key": (["data=mix", "data.mix={a: {data: text, pth: x}}"], "pth: unknown setting"),
    "weight of zero": (["data=mix", "data.mix={a: {data: sample, weight: 0}}"], "data.mix.a.weight=0.0.*greater than 0"),
    "sources without mix": (["data.mix={a: {data: sample}}"], "set data=mix"),
    "a mix in a mix": (["data=mix", "data.mix={a: {data: mix}}"], "data.mix.a.data=mix: there is no such option"),
}


@pytest.mark.parametrize("case", BAD_MIXES)
def test_a_mix_that_is_none(case, tmp_path, capsys):
    args, message = BAD_MIXES[case]
    assert run(*args, f"out={tmp_path}") == 2
    assert re.search(message, capsys.readouterr().err)
