"""Libraries from C++ files: one for each source, and one line where there can be none."""

import ctypes

import pytest

from rwkv.compile_cpp import compile_cpp
from rwkv.errors import KernelError


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "one.cpp"


def test_the_file_name_follows_the_source(source):
    libraries = []
    for value in (1, 2, 1):
        source.write_text(f'extern "C" int f() {{ return {value}; }}')
        try:
            libraries.append(compile_cpp(source))
        except KernelError:
            pytest.skip("no C++ compiler here")
    assert libraries[0] == libraries[2] != libraries[1]
    assert [ctypes.CDLL(str(x)).f() for x in libraries] == [1, 2, 1]


def test_no_compiler_and_a_broken_source(source, tmp_path, monkeypatch):
    source.write_text("no C++")
    with pytest.raises(KernelError, match=r"^(\S+ cannot build one\.cpp: .*error.*|no C\+\+ compiler found .*)$"):
        compile_cpp(source)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "missing")
    with pytest.raises(KernelError, match=r"no C\+\+ compiler found"):
        compile_cpp(source)
