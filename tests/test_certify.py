"""python -m rwkv.certify: passes what is exact, fails what is not."""

import pytest

from rwkv import certify
from rwkv.errors import ConfigError
from tests.conftest import tiny

SMALL = [a for a in tiny("ctx_len=32") if not a.startswith(("sample", "trainer"))]


@pytest.mark.parametrize("arch", ["v4", "v5", "v6", "v7"])
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "bf16-mixed"])
def test_exact_passes(arch, precision, capsys):
    assert certify.main([*SMALL, f"arch={arch}", f"precision={precision}", "layout=document"]) == 0
    out = capsys.readouterr().out
    assert "EXACT: every length passes" in out and "192 tokens in 6 chunks" in out and "att.key.weight" in out


def test_truncated_fails(capsys):
    assert certify.main([*SMALL, "bptt=truncated", "layout=document"]) == 1
    assert "NOT EXACT" in capsys.readouterr().out


def test_a_stream_is_told_its_reach(capsys):
    assert certify.main([*SMALL, "layout.chunks=2", "--lengths=64"]) == 0
    assert "exact over those 64 tokens of a lane and does not pass between steps" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "message"), [("--lengths=32", "one chunk of ctx_len=32 has all of it"), ("--lengths=x", "wanted numbers"), ("--length=9", "unknown flag")])
def test_refuses(flag, message):
    with pytest.raises(ConfigError, match=message):
        certify.main([*SMALL, flag])
