"""JSON is read by a fast library; what it refuses, or reads otherwise, is as Python's library has it."""

import json
import math
import random

import pytest

from rwkv.data.sources.jsonl import parse

SCALARS = [None, True, 0, -1, 2**63, -(2**63), 0.1, 1e-308, "", 'a"b\\', "é天🎉\u2028", "\x7f", "tab\tnew\nline"]


def random_value(rng: random.Random, depth: int = 0):
    kind = rng.random()
    if depth > 3 or kind < 0.5:
        return rng.choice(SCALARS)
    values = [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return values if kind < 0.75 else {rng.choice(["a", "b", "é", ""]): value for value in values}


def test_values_are_those_of_pythons_library():
    rng = random.Random(0)
    for i in range(2000):
        raw = json.dumps({"x": random_value(rng)}, ensure_ascii=bool(i % 2)).encode()
        value, bad = parse(raw)
        assert bad is None and value == json.loads(raw) and repr(value) == repr(json.loads(raw))


@pytest.mark.parametrize(
    "raw",
    [
        '{"x": NaN, "y": -Infinity}',
        '{"x": "\\ud800", "text": "fine"}',
        '{"x": "\\ud83d\\ude00"}',
        '{"x": 1, "x": 2}',
        '{"x": 1e400}',
        " \t{}\r\n",
        '{"x": ' + "[" * 900 + "]" * 900 + "}",
        '{"x": ' + "[" * 1500 + "]" * 1500 + "}",
    ],
)
def test_what_the_fast_library_may_refuse(raw):
    value, bad = parse(raw.encode())
    try:
        wanted = json.loads(raw)
    except RecursionError:
        assert (value, bad) == (None, "JSON nested too deeply")
    else:
        assert bad is None and repr(value) == repr(wanted)


def test_integers_beyond_64_bits_are_numbers():
    """The fast library makes them floats. No number becomes text, so that makes no document differ."""
    value, bad = parse(b'{"x": 123456789012345678901234567890}')
    assert bad is None and math.isclose(value["x"], 123456789012345678901234567890)


@pytest.mark.parametrize(
    "raw, why",
    [
        (b'{"text": "a', "not JSON: Unterminated string starting at at character 10"),
        (b'{"text": "a\xff"}', "not UTF-8 (byte 12 of it is 0xff)"),
        (b'{"text": "a\tb"}', "not JSON: Invalid control character at at character 12"),
        (b'{"text": "a"} {}', "not JSON: Extra data at character 15"),
        (b"{'text': 1}", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b"3", "a number, not a mapping of keys to values"),
        (b"NaN", "a number, not a mapping of keys to values"),
        (b'"a"', "text, not a mapping of keys to values"),
    ],
)
def test_what_is_wrong_is_said_by_its_place(raw, why):
    assert parse(raw) == (None, why)
