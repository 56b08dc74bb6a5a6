"""Processes of ours that watch their parents."""

import os

import pytest

from rwkv.training import signals


@pytest.mark.parametrize("before", [None, "1"])
def test_the_parent_is_named_while_a_run_lasts(before, monkeypatch):
    """What a process starts after a run, as tests and notebooks do, takes itself for no job."""
    monkeypatch.delenv(signals.PARENT, raising=False) if before is None else monkeypatch.setenv(signals.PARENT, before)
    monkeypatch.setattr(signals.threading.Thread, "start", lambda thread: None)
    with pytest.raises(ValueError), signals.watching_parent() as is_job:
        assert is_job == (before is not None) and os.environ[signals.PARENT] == str(os.getpid())
        raise ValueError
    assert os.environ.get(signals.PARENT) == before
