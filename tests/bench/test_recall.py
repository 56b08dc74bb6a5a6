"""The task that needs the gradient of the whole document is learnt with it, and not without."""

import sys

import pytest
import torch

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts/bench"))
recall = pytest.importorskip("recall")


@pytest.mark.slow
def test_exact_learns_and_truncated_does_not():
    torch.set_num_threads(1)
    silent = lambda _: None  # noqa: E731
    exact = recall.learn(None, [(4, 110), (16, 3)], say=silent)
    truncated = recall.learn(1, [(4, 110)], say=silent)
    assert exact[4] > 0.9 and exact[16] > 0.9
    assert truncated[4] < 0.2
