"""A bad value of any number among the settings is refused, with the setting's name, the value and what is allowed."""

import dataclasses
import random
import typing

import pytest

from rwkv import train
from rwkv.config import cli
from rwkv.config.schema import TrainConfig


def base_types(kind) -> set[type]:
    """What is behind Annotated, unions and tuples."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    parts = [part for part in typing.get_args(kind) if part is not Ellipsis]
    return set().union(*map(base_types, parts)) if parts and typing.get_origin(kind) is not typing.Literal else {kind}


def numbers(kind=TrainConfig, prefix="") -> dict[str, type]:
    """Setting -> int or float, of all that can be a number and stand alone on the command line."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        types, key = base_types(hint), f"{prefix}{name}"
        inner = [t for t in types if dataclasses.is_dataclass(t)]
        if inner and typing.get_origin(hint) not in (dict, tuple) and key not in ("data.mix", "data.record"):
            found |= numbers(inner[0], f"{key}.")
        elif {int, float} & types:
            found[key] = float if float in types else int
    return found


NUMBERS = numbers() | numbers(typing.get_type_hints(TrainConfig)["data"].__dataclass_fields__["record"].type, "data.record.")


def bad_value(kind: type, pick: random.Random) -> str:
    """None of these is allowed of any setting: negative, a fraction of what is counted, beyond all numbers, no number."""
    anything = [f"-{pick.randint(1, 10**9)}", f"-{pick.random() + 0.01:.6f}", pick.choice(["nan", "inf", "-inf"]), f"{pick.randint(2, 99)}q"]
    return pick.choice([*anything, f"{pick.randint(0, 99)}.5", f"1e{pick.randint(30, 300)}"] if kind is int else anything)


def refused(name: str, value: str, folder, capsys) -> None:
    key = name.removesuffix(".tokens") if name.startswith("ctx_len") else name
    override = f"{key}={value}"
    if name.startswith("model.lora_rank."):
        override = "model.lora_rank={" + ", ".join(f"{k}: {value if name.endswith(k) else 8}" for k in "wavg") + "}"
    elif name == "optim.betas":
        override = f"optim.betas=[0.9, {value}]"
    assert cli.guarded(train.main, [override, f"out={folder / 'out'}"]) == 2, override
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err and key in err, (override, err)
    assert any(told in err for told in ("should be", "there is no such option")) and value.lstrip("-").rstrip("q").split("e")[0][:4] in err, (override, err)
    assert not list(folder.iterdir())


def test_all_are_found():
    assert (
        len(NUMBERS) > 50
        and {"seed", "ctx_len.tokens", "optim.betas", "expect.train_loss", "strategy.devices", "data.record.untrained_tokens"} <= NUMBERS.keys()
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_a_bad_number(name, tmp_path, capsys):
    refused(name, bad_value(NUMBERS[name], random.Random(name)), tmp_path, capsys)
