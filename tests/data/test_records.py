"""Records: each form becomes its parts, trained or not. Where the infctx trainer crashed or trained something else, the test says so."""

import json

import pytest

from rwkv.data.records import BadRecord, Part, columns_of, parts
from tests.data.sourcing import data_of, texts, write


def spec(*overrides: str):
    return data_of("data=jsonl", "data.path=x", *(f"data.record.{o}" for o in overrides)).record


DEFAULT = spec()


def shown(record, form=DEFAULT) -> str:
    """Parts as text, the untrained in brackets."""
    return "".join(part.text.decode() if part.trained else f"[{part.text.decode()}]" for part in parts(record, form))


def why(record, form=DEFAULT) -> str:
    with pytest.raises(BadRecord) as caught:
        parts(record, form)
    return str(caught.value)


MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi "}, {"role": "assistant", "content": "Hello!"}]
CHAT = "[System: Be kind.\n\nUser: Hi\n\nAssistant:] Hello!\n\n"

AUTO = {
    "text": ({"text": "a\nb", "id": 1}, "a\nb"),
    "prompt": ({"prompt": "p", "completion": "c"}, "[p]c"),
    "prompt and response": ({"prompt": "p", "response": "c"}, "[p]c"),
    "columns": ({"instruction": "do", "input": "this", "output": "done"}, "[Instruction: do\n\nInput: this\n\nResponse:] done"),
    "an empty column": ({"instruction": "do", "input": "", "output": "done"}, "[Instruction: do\n\nResponse:] done"),
    "a null column": ({"instruction": "do", "input": None, "output": "done"}, "[Instruction: do\n\nResponse:] done"),
    "columns as dolly names them": (
        {"instruction": "do", "context": "this", "response": "done", "category": "x"},
        "[Instruction: do\n\nInput: this\n\nResponse:] done",
    ),
    "alpaca has its text made up too": ({"instruction": "do", "input": "", "output": "done", "text": "all of it"}, "[Instruction: do\n\nResponse:] done"),
    "one column is no record of columns": ({"input": "i", "text": "t"}, "t"),
    "messages": ({"messages": MESSAGES}, CHAT),
    "messages beside their prompt": ({"prompt": "Hi", "prompt_id": "1", "messages": MESSAGES}, CHAT),
    "ShareGPT": ({"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}, "[User: Hi\n\nAssistant:] Hello!\n\n"),
    "null is as if it were not there": ({"messages": None, "prompt": None, "completion": None, "text": "t"}, "t"),
    "a key of messages that holds none": ({"messages": "12 messages", "text": "t"}, "t"),
    "bytes": (b"\xff", None),
}


@pytest.mark.parametrize("case", AUTO)
def test_auto_goes_by_the_keys(case):
    record, want = AUTO[case]
    if want is None:
        assert parts(record, DEFAULT) == [Part(record, True)]
    else:
        assert shown(record) == want


def test_what_a_prompt_holds_is_one_part():
    """Tokenised as one text, as it is when generating; the infctx trainer tokenises each segment by itself."""
    user, assistant, *rest = parts({"messages": MESSAGES}, DEFAULT)
    assert (user.text, assistant.text, rest) == (b"System: Be kind.\n\nUser: Hi\n\nAssistant:", b" Hello!\n\n", [])


def test_text_by_key_and_the_first_of_several():
    assert shown({"body": "b", "text": "t"}, spec("text=body")) == "b"
    assert shown({"b": "two"}, spec("text=[a,b]")) == "two"
    assert shown({"code": "x", "instruction": "i", "output": "o"}, spec("kind=text", "text=code")) == "x"


def test_prompts():
    assert shown({"q": "Q: why?\n", "a": "so"}, spec("prompt=q", "completion=a")) == "[Q: why?\n]so"
    assert shown({"prompt": "p", "completion": "c"}, spec("train_prompt=true")) == "pc"
    assert shown({"prompt": "", "completion": "c"}) == "c"
    assert why({"prompt": "p", "completion": ""}) == "nothing of it is trained"
    assert why({"prompt": 5, "completion": "c"}) == "its prompt is a number, not text"
    assert why({"prompt": "p"}, spec("kind=prompt")) == "no key completion or response: its keys are prompt"


COLUMNS = 'columns=[{key: q, prefix: "Q ", suffix: ";", trained: false}, {key: a, prefix: "A ", suffix: "."}, {key: n}]'


@pytest.mark.parametrize(("markup", "want"), [("own", "[Q why;|A ]so.[|]note"), ("trained", "Q [why];|A so.|note"), ("untrained", "[Q why;|A ]so[.|]note")])
def test_what_surrounds_columns(markup, want):
    """trained is what the infctx trainer does: only the columns' own text is ever masked there."""
    form = spec("kind=columns", COLUMNS, "separator='|'", f"markup={markup}")
    assert shown({"q": "why", "a": "so", "n": "note"}, form) == want
    assert shown({"a": "so"}, form) == {"own": "[A ]so.", "trained": "A so.", "untrained": "[A ]so[.]"}[markup]


def test_columns_carry_their_own_settings():
    """In the infctx trainer keys without a train_mask crash, a short one is an IndexError, a null prefix shifts those after it."""
    form = spec("kind=columns", "columns=[{key: a}, {key: b, prefix: 'B '}]", "separator=''")
    assert shown({"a": "x", "b": "y"}, form) == "x[B ]y"


def test_columns_that_hold_nothing():
    form = spec("kind=columns")
    assert why({"a": 1}, form) == "none of the columns instruction, input/context, output/response holds text: its keys are a"
    assert why({"instruction": "do", "output": ""}, form) == "nothing of it is trained"
    assert why({"instruction": "do", "output": 7}, form) == "its output is a number, not text"  # infctx: TypeError in a worker


# conversations


def chat(*overrides: str):
    return spec("kind=chat", *(f"chat.{o}" for o in overrides))


def test_turns_as_the_template_writes_them():
    turns = [*MESSAGES, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "It is 42."}]
    assert shown({"messages": turns}) == CHAT + "[User: Function output:\n42\n\nAssistant:] It is 42.\n\n"


def test_content_as_a_list_of_texts():
    turn = {"role": "assistant", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}
    assert shown({"messages": [turn]}) == "[Assistant:] one two\n\n"
    turn["content"].append({"type": "image_url", "image_url": {"url": "x"}})
    assert why({"messages": [turn]}) == "turn 1 holds image_url, not text alone"


def test_turns_as_a_mapping_of_lists():
    """As older versions of `datasets` store lists of mappings."""
    assert shown({"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello!"]}}) == "[User: Hi\n\nAssistant:] Hello!\n\n"
    assert why({"conversations": {"from": ["human"], "value": []}}) == "its conversations is a mapping, not a list of turns"


def test_empty_turns_are_left_out():
    assert shown({"messages": [{"role": "system", "content": ""}, {"role": "user", "content": None}, *MESSAGES[1:]]}) == CHAT.replace(
        "System: Be kind.\n\n", ""
    )


BAD_CHATS = {
    "no turns": ({"messages": []}, "empty"),
    "nothing said": ({"messages": [{"role": "user", "content": " "}]}, "empty"),
    "no assistant": ({"messages": MESSAGES[:2]}, "nothing of it is trained"),
    "unknown role": ({"messages": [{"role": "poet", "content": "x"}]}, "turn 1 is by poet, which is none of the roles system, user, human"),
    "no role": ({"messages": [{"content": "x"}]}, "turn 1 does not say who speaks: no text under role or from; its keys are content"),
    "no content": ({"messages": [{"role": "user", "txt": "x"}]}, "turn 1 says nothing: no key content or value; its keys are role, txt"),
    "a number": ({"messages": [{"role": "user", "content": 5}]}, "turn 1: what is said is a number, not text"),
    "no mappings": ({"messages": ["Hi", "Hello"]}, "turn 1 is no mapping"),
    "tool calls": ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "turn 1 calls a tool"),
    "no list": ({"messages": "Hi"}, "its messages is no list of turns"),
    "no key": ({"text": "x"}, "no key messages or conversations or conversation: its keys are text"),
    "a list": ([{"role": "user", "content": "x"}], "a list, not a mapping"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_bad_chats(case):
    record, message = BAD_CHATS[case]
    assert why(record, spec("kind=chat")).startswith(message)


def test_the_record_itself_is_the_list():
    """conversation_key: null of the infctx trainer, documented there and a KeyError."""
    form = chat("key=null", "sender=role")
    assert shown(MESSAGES, form) == CHAT
    assert why({"messages": MESSAGES}, form).startswith("a mapping of keys to values, not a list of turns")


def test_a_file_of_lists(tmp_path):
    file = write(tmp_path / "a.jsonl", f"{json.dumps(MESSAGES)}\n" * 2)
    assert len(texts("data=chat", f"data.path={file}", "data.record.chat.key=null")) == 2


IOPAIRS = ("key=conversation", "sender=null", "trim=false", "end=END",
           "roles={input: {prefix: 'U ', suffix: ';', trained: false}, output: {prefix: 'A '}}", "other={}")  # fmt: skip


def test_each_key_of_a_turn_a_speaker():
    """iopairs of the infctx trainer: a suffix left out crashes there; keys without settings are trained, bare."""
    turns = [{"input": "hi ", "output": "yo", "note": "n"}, {"input": None, "output": "bye"}]
    assert shown({"conversation": turns}, chat(*IOPAIRS)) == "[U hi ;A ]yon[A ]byeEND"


def test_a_speaker_and_several_texts_a_turn():
    """sender of the infctx trainer, with an input_key_map of two keys."""
    form = chat(
        "key=log", "sender=who", "content=message", "also={context: ' ctx: '}", "trim=false", "other=null",
        "roles={user: {prefix: 'User:', lead: '', suffix: '', trained: false}, bot: {prefix: 'Bot ({role}):', suffix: '!', aliases: [robo]}}",
    )  # fmt: skip
    log = [{"who": "user", "message": "a", "context": "c"}, {"who": "robo", "message": "b"}]
    assert shown({"log": log}, form) == "[User:a ctx: cBot (robo):]b!"


def test_roles_of_ones_own_and_others(tmp_path):
    form = spec("kind=chat", "chat.roles.narrator.prefix='* '", "chat.roles.user.prefix='U:'", "chat.other={prefix: '{role}: ', trained: false}")
    turns = [
        {"role": "narrator", "content": "Night."},
        {"role": "user", "content": "Hi"},
        {"role": "Bob", "content": "Yo"},
        {"role": "assistant", "content": "Hey"},
    ]
    assert shown({"messages": turns}, form) == "[* ]Night.[U: Hi\n\nBob: YoAssistant:] Hey\n\n"


@pytest.mark.parametrize(("markup", "end"), [("own", " Hello!\n\n"), ("trained", "\n\nAssistant: Hello!\n\n"), ("untrained", " Hello!")])
def test_the_end_of_a_turn_is_learnt(markup, end):
    trained = [part.text.decode() for part in parts({"messages": MESSAGES}, spec(f"markup={markup}")) if part.trained]
    assert trained[-1] == end


# tables


def test_columns_that_are_read():
    names = ["id", "text", "messages", "instruction", "vector"]
    assert columns_of(DEFAULT, names) == ["text", "messages", "instruction"]
    assert columns_of(spec("kind=text"), names) == ["text"]
    assert columns_of(spec("kind=chat"), names) == ["messages"]
    assert columns_of(spec("kind=columns"), names) == ["instruction"]
    assert columns_of(spec("kind=text", "text=body"), names) == []


# the infctx trainer's reading of text


def test_newlines_survive_and_short_lines_too(tmp_path):
    """There a text file is read by lines: blank and one-token lines are lost, and the rest is joined with the end-of-text token."""
    content = "To be\n\nor\na\n not to be\n"
    assert texts("data=text", f"data.path={write(tmp_path / 'a.txt', content)}") == [content.encode()]
    assert texts("data=jsonl", f"data.path={write(tmp_path / 'a.jsonl', json.dumps({'text': content}))}") == [content.encode()]
    assert texts("data=lines", f"data.path={tmp_path / 'a.txt'}")[2:4] == [b"or", b"a"]


def test_documents_are_the_same_for_any_number_of_processes(tmp_path):
    """Packing there depends on the number of CPU cores; here the shares are of the file alone."""
    from rwkv.data.sources import units

    file = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": str(i)}) + "\n" for i in range(100)))
    one, many = (units(data_of("data=jsonl", f"data.path={file}", f"data.processes={n}")) for n in (1, 64))
    assert [unit.identity for unit in one] == [unit.identity for unit in many]
