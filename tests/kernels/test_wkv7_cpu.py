"""The compiled CPU kernel where it is not there, half there, or misused. Its numbers are checked in test_wkv7.py."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rwkv.errors import KernelError
from rwkv.kernels import registry
from rwkv.kernels.wkv7 import cpu, wkv7

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(cpu.why_not(torch.empty(1, 1, 1, 64)) is not None, reason="no C++ compiler here")


def python(code, **env):
    """Standard output of `code` in a fresh process with these environment variables (None removes one)."""
    full = {k: v for k, v in {**os.environ, "PYTHONPATH": str(ROOT), **env}.items() if v is not None}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=full, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


FALLS_BACK = """
    import torch
    from rwkv.kernels import registry
    from rwkv.kernels.wkv7 import cpu, wkv7
    x = [torch.randn(1, 20, 1, 16, requires_grad=True) for _ in range(6)]
    reason = registry.why_not("wkv7", x[0])["cpu"]
    y, s = wkv7(*x)
    (y.sum() + s.sum()).backward()
    print(registry.chosen("wkv7", "auto", x[0]), "|", reason)
    try:
        wkv7(*x, backend="cpu")
    except registry.KernelError as e:
        print(e)
"""


def test_without_a_compiler_the_chunked_form_runs(tmp_path):
    out = python(FALLS_BACK, CXX=str(tmp_path / "missing"), PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    first, second = out.splitlines()
    assert first == "chunked | no C++ compiler found ($CXX, g++, c++, clang++)"
    assert "no C++ compiler" in second


def test_a_failing_build_is_tried_once_and_tells_why(tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\necho 'cpu.cpp:1: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    again = f"""
    calls = open("{tmp_path}/calls").read()
    cpu.why_not(x[0])
    print(calls == open("{tmp_path}/calls").read())
    """
    out = python(FALLS_BACK + again, CXX=str(compiler), XDG_CACHE_HOME=str(tmp_path / "cache"))
    first, _, tried_once = out.splitlines()
    assert first.startswith("chunked | ") and first.endswith("no such luck") and tried_once == "True"
    assert list((tmp_path / "cache" / "rwkv").iterdir()) == []  # no half-made library stays


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert python(FALLS_BACK, XDG_CACHE_HOME=str(tmp_path / "cache")).startswith("chunked | ")


def test_other_tensors_compile_nothing(tmp_path):
    code = """
        import torch
        from rwkv.kernels.wkv7 import cpu
        print(cpu.why_not(torch.empty(1, 1, 1, 64, device="meta")))
        print(cpu.why_not(torch.empty(1, 1, 1, 64, dtype=torch.float64)))
        print(cpu.why_not(torch.empty(1, 1, 1, 12)))
        print(cpu.library._loaded)
    """
    lines = python(code, XDG_CACHE_HOME=str(tmp_path / "cache")).splitlines()
    assert lines == ["fp32, bf16 and fp16 CPU tensors only"] * 2 + ["head sizes that are multiples of 8 only", "None"]
    assert not (tmp_path / "cache").exists()


@built
def test_a_changed_header_is_compiled_anew(tmp_path):
    (tmp_path / "part.h").write_text("int answer() { return 1; }")
    source = tmp_path / "whole.cpp"
    source.write_text('#include "part.h"\nextern "C" int ask() { return answer(); }')
    code = f"""
        from pathlib import Path
        from rwkv.kernels.compiled import Library
        for i in (1, 2):
            Path({str(tmp_path)!r}, "part.h").write_text("int answer() {{ return %d; }}" % i)
            print(Library(Path({str(source)!r})).count("ask"))
    """
    assert python(code, XDG_CACHE_HOME=str(tmp_path / "cache")).split() == ["1", "2"]


@built
def test_processes_that_build_at_once_agree(tmp_path):
    code = "import torch; from rwkv.kernels.wkv7 import cpu; print(cpu.why_not(torch.empty(1, 1, 1, 64)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in runs] == ["None", "None"]
    files = list((tmp_path / "rwkv").iterdir())
    assert len(files) == 1 and files[0].suffix == ".so"


@built
def test_auto_takes_it_for_fp32():
    assert registry.chosen("wkv7", "auto", torch.empty(1, 20, 1, 64)) == "cpu"
    assert registry.chosen("wkv7", "auto", torch.empty(1, 20, 1, 64, dtype=torch.float64)) == "chunked"


@built
def test_mixed_dtypes_and_shapes_are_refused():
    x = [torch.randn(1, 4, 1, 8) for _ in range(6)]
    with pytest.raises(KernelError, match="b must be torch.float32 .* got torch.float64"):
        wkv7(*x[:5], x[5].double(), backend="cpu")
    with pytest.raises(KernelError, match=r"\[1, 3, 1, 8\]"):
        wkv7(*x[:5], x[5][:, :3], backend="cpu")
    with pytest.raises(KernelError, match="reset"):
        wkv7(*x, reset=torch.zeros(1, 5, dtype=torch.bool), backend="cpu")


@built
def test_backward_twice_and_under_checkpointing():
    x = [torch.randn(2, 40, 2, 16) * 0.3 for _ in range(6)]
    leaves = [t.requires_grad_() for t in x]
    y, s = wkv7(*leaves, backend="cpu")
    loss = y.square().sum() + s.square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    y, s = torch.utils.checkpoint.checkpoint(lambda *args: wkv7(*args, backend="cpu"), *leaves, use_reentrant=False)
    third = torch.autograd.grad(y.square().sum() + s.square().sum(), leaves)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))


@built
def test_threads_do_not_change_a_bit():
    x = [torch.randn(3, 40, 3, 16) * 0.3 for _ in range(6)]
    before, got = torch.get_num_threads(), []
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            leaves = [t.clone().requires_grad_() for t in x]
            y, s = wkv7(*leaves, backend="cpu")
            got.append([y, s, *torch.autograd.grad(y.sum() + s.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


@built
def test_not_a_number_stays_visible():
    for i in range(6):
        x = [torch.randn(1, 20, 1, 16) for _ in range(6)]
        x[i][0, 3, 0, 5] = float("nan")
        y, s = wkv7(*x, backend="cpu")
        assert y[0, 3:].isnan().any() and not y[0, :3].isnan().any()
