"""python -m rwkv.kernels: the list of backends, and the comparison with fp64."""

import dataclasses

import pytest
import torch

from rwkv.config.cli import guarded
from rwkv.kernels import dry, registry
from rwkv.kernels.__main__ import main


def test_the_list_says_what_runs_and_why_not(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    sections, op = {}, None
    for line in lines[3:]:
        op = line[:15].strip() or op
        backend, reason = line[16:].split(maxsplit=1)
        sections.setdefault(op, {})[backend] = reason
    assert set(sections) == set(registry.ops()) and all(list(sections[op]) == registry.names(op) for op in sections)
    assert all(list(s.values()).count("runs") == 1 for s in sections.values())
    if not torch.cuda.is_available():
        assert sections["wkv6"]["triton"] == "CUDA devices only"


@pytest.mark.parametrize("op", ["wkv4", "wkv6", "wkv7", "norm_mix", "wkv7_inputs", "wkv7_readout", "relu_squared", "cross_entropy_"])
def test_what_can_run_here_passes(op, capsys):
    assert main(["check", op]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(op)]
    assert {row[1] for row in rows} == set(registry.names(op)) and max(map(len, out.splitlines()[2:])) <= 80
    assert all("cannot" in row or row[5] == "ok" for row in rows)


def test_one_backend_by_itself(capsys):
    assert main(["check", "kernel=chunked", "wkv4", "wkv6", "relu_squared"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()[:2]) for line in out if line.startswith(("wkv", "relu"))} == {("wkv4", "chunked"), ("wkv6", "chunked")}


def test_nothing_that_can_run_is_no_success(capsys):
    with dry.on("cpu"):  # on a GPU too
        assert main(["check", "kernel=cuda", "wkv7"]) == 1
    assert "FAILED: none of them can run here" in capsys.readouterr().out


SPOILT = [(lambda y: y + 0.01 * y.detach().mean(), "y"), (lambda y: y + 1e-3 * (y - y.detach()), "d"), (lambda y: y * float("nan"), "")]


@pytest.mark.parametrize(("spoil", "tensor"), SPOILT, ids=["output", "gradient", "nan"])
def test_a_wrong_output_and_a_wrong_gradient_fail(spoil, tensor, monkeypatch, capsys):
    right = registry._OPS["wkv4"]["chunked"]

    def wrong(*args):
        y, state = right.run(*args)
        return spoil(y), state

    monkeypatch.setitem(registry._OPS["wkv4"], "chunked", dataclasses.replace(right, run=wrong))
    assert main(["check", "wkv4"]) == 1
    row = next(line for line in capsys.readouterr().out.splitlines() if "chunked   fp32" in line)
    assert "FAIL" in row and f"FAIL {tensor}" in row


def test_what_is_no_operation_is_refused(capsys):
    assert guarded(main, ["check", "wkv9"]) == 2
    assert "wkv9: no such operation; there are cross_entropy_, " in capsys.readouterr().err
    assert guarded(main, ["check", "kernel=chunk", "wkv4"]) == 2
    assert "kernel=chunk: no backend of wkv4" in capsys.readouterr().err
    assert guarded(main, ["chek"]) == 2
