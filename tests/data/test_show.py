"""python -m rwkv.preload --show N: records as they will be trained, told apart by brackets, on a terminal by colour."""

import json

import numpy as np
import pytest

from rwkv import preload
from rwkv.config import cli
from rwkv.data.show import END, ID, TRAINED, UNTRAINED, body
from rwkv.data.tokenizer import Bytes
from tests.data.preparing import write_binidx
from tests.data.sourcing import write


@pytest.fixture
def screen(capsys):
    """What the command prints below its key, with lines as they are."""

    def shown(*args: str) -> str:
        assert cli.guarded(preload.main, list(args)) == 0
        key, _, rest = capsys.readouterr().out.partition("\n")
        assert key == "key: [[not trained]]   <end> is token 0"
        return rest.strip("\n")

    return shown


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
PAIRS = ["chat.key=c", "chat.sender=null", "chat.other={}", "chat.roles={q: {prefix: 'Q:', suffix: ';', trained: false}}"]
SENDERS = ["chat.key=c", "chat.sender=who", "chat.content=say", "chat.roles={user: {prefix: 'U:'}, bot: {prefix: 'B:', suffix: '.'}}"]
FLAGS = "columns=[{key: a, prefix: 'A ', trained: false}, {key: b, prefix: 'B ', suffix: '!'}]"
FORMS = {
    "text": ({"text": "a\n\nb"}, [], "a\n\nb<end>"),
    "prompt": ({"prompt": "why? ", "completion": "so"}, [], "[[why? ]]so<end>"),
    "columns": ({"a": "x", "b": "y"}, ["kind=columns", FLAGS, "separator=' '"], "[[A x B ]]y!<end>"),
    "columns, all trained": (
        {"a": "x", "b": "y"},
        ["kind=columns", FLAGS, "separator=' '", "markup=trained"],
        "A [[x]] B y!<end>",
    ),
    "messages": ({"messages": MESSAGES}, ["kind=chat"], "[[User: Hi\n\nAssistant:]] Yo\n\n<end>"),
    "iopairs": ({"c": [{"q": "one", "x": "two"}]}, ["kind=chat", *PAIRS], "[[Q:one;]]two<end>"),
    "sender": ({"c": [{"who": "user", "say": "one"}, {"who": "bot", "say": "two"}]}, ["kind=chat", *SENDERS], "[[U: one\n\nB:]]two.<end>"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_record(form, screen, tmp_path):
    record, settings, want = FORMS[form]
    file = write(tmp_path / "a.jsonl", json.dumps(record) + "\n")
    title, _, text = screen("data=jsonl", f"data.path={file}", "--show", "3", *(f"data.record.{o}" for o in settings)).partition("\n")
    assert text == want and title.startswith("--- 1: a.jsonl, line 1   ") and title.endswith(" trained")


def test_so_many_and_what_becomes_of_each(screen, tmp_path):
    """What is no record, or too short, is said beside it; nothing is prepared."""
    lines = ['{"text": "one"}', '{"text": 5}', "{bad", '{"text": "xy"}', '{"text": "five"}', '{"text": "six"}']
    file = write(tmp_path / "a.jsonl", "\n".join(lines))
    shown = screen("data=jsonl", f"data.path={file}", f"out={tmp_path / 'out'}", "data.first=1", "data.min_tokens=4", "--show", "4")
    assert [line for line in shown.splitlines() if line] == [
        "--- 1: a.jsonl, line 2: no document: its text is a number, not text",
        "--- 2: a.jsonl, line 3: no document: not JSON: Expecting property name enclosed in double quotes at character 2",
        "--- 3: a.jsonl, line 4   3 tokens, 2 trained, dropped: shorter than min_tokens=4",
        "xy<end>",
        "--- 4: a.jsonl, line 5   5 tokens, 4 trained",
        "five<end>",
    ]
    assert not (tmp_path / "out").exists()


def test_ids_on_request(screen, tmp_path):
    file = write(tmp_path / "a.jsonl", '{"prompt": "ab", "completion": "c"}\n')
    assert screen("data=jsonl", f"data.path={file}", "--show", "1", "--ids").endswith("[[a<98>b<99>]]c<100><end><0>")


def test_tokens_of_others_with_their_mask(screen, tmp_path):
    write_binidx(tmp_path / "set", [np.array([98, 99, 0]), np.array([100, 0])])
    np.array([0, 1, 1, 1, 1], bool).tofile(tmp_path / "set.trained")
    shown = screen("data=binidx", f"data.path={tmp_path / 'set'}", "--show", "5").splitlines()
    assert shown[1] == "[[a]]b<end>" and shown[-1] == "c<end>" and "set.bin, document 1" in shown[-2]


def test_text_does_not_act_on_the_terminal(screen, tmp_path):
    file = write(tmp_path / "a.jsonl", json.dumps({"text": "[bold]x\x1b[31m\r\x9b é"}))
    assert screen("data=jsonl", f"data.path={file}", "--show", "1").splitlines()[1] == r"[bold]x\x1b[31m\x0d\x9b é<end>"


@pytest.mark.parametrize("ids", [False, True])
def test_colours(ids):
    """Each stretch of text in the colour of its training; the end by itself."""
    text = body(np.array([98, 99, 100, 0]), np.array([False, False, True, True]), Bytes(), ids, colour=True)
    spans = [(text.plain[s.start : s.end], s.style) for s in text.spans]
    if ids:
        wanted = [("a", UNTRAINED), ("<98>", ID), ("b", UNTRAINED), ("<99>", ID), ("c", TRAINED), ("<100>", ID), ("<end>", END), ("<0>", ID)]
    else:
        wanted = [("ab", UNTRAINED), ("c", TRAINED), ("<end>", END)]
    assert spans == wanted and len({UNTRAINED, TRAINED, END, ID}) == 4


def test_ids_alone_are_refused(capsys):
    assert cli.guarded(preload.main, ["data=sample", "--ids"]) == 2
    assert "give it --show N" in capsys.readouterr().err
