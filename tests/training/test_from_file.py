"""model=from_file: training goes on from a model that exists."""

import json
from types import SimpleNamespace

import pytest
import torch

from rwkv import init, train
from rwkv.checkpoint import official, store
from rwkv.checkpoint.shards import Tensors
from rwkv.config import cli
from rwkv.errors import CheckpointError
from rwkv.training.session import Session
from tests.conftest import the_run, tiny, write_text


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def arguments(text, *changes):
    """Of a run of seconds that leaves generation and sizes to the file."""
    args = [a for a in tiny("data=text", f"data.path={text}", f"out={text.parent / 'out'}") if not a.startswith("model.")]
    return [*args, *changes]


def losses(folder):
    run = the_run(folder)
    return [json.loads(line)["train/loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]


def test_goes_on_where_the_run_ended(text, tiny_run, capsys):
    assert train.main(arguments(text, "model=from_file", f"model.path={tiny_run}")) == 0
    before = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
    assert losses(text.parent / "out")[0] < before[0]["train/loss"] - 1
    assert f"from   {tiny_run}" in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["v4", "v5", "v6", "v7"])
def test_a_blank_model_of_each_generation(text, arch):
    """Sizes and generation are in the file alone."""
    path = text.parent / "blank.pth"
    sizes = ["model.n_layer=2", "model.n_embd=64", f"arch={arch}"]
    assert init.main([str(path), *sizes]) == 0
    assert train.main(arguments(text, "model=from_file", f"model.path={path}")) == 0
    assert abs(losses(text.parent / "out")[0] - 5.67) < 0.1  # ln 257 + 0.12


def refused(capsys, argv):
    assert cli.guarded(train.main, argv) == 2
    return capsys.readouterr().err


def test_contradictions_name_both(text, tiny_run, capsys):
    err = refused(capsys, arguments(text, "model=from_file", f"model.path={tiny_run}", "model.n_layer=3", "arch=v6"))
    assert "model.n_layer=3, but" in err and "has 2" in err and "arch.version=v6" in err and "has v7" in err


def test_the_tokenizer_must_fit(text, tmp_path, capsys):
    init.main([str(tmp_path / "small.pth"), "model.n_layer=1", "model.n_embd=64", "model.vocab_size=257"])
    err = refused(capsys, arguments(text, "model=from_file", f"model.path={tmp_path / 'small.pth'}", "tokenizer=world"))
    assert "has a vocabulary of 257, tokenizer=world one of 65536; choose the model's tokenizer=" in err


def test_without_a_file(text, capsys):
    assert "model.path=FILE_OR_RUN" in refused(capsys, arguments(text, "model=from_file"))


def test_what_differs_is_an_error_unless_allowed_and_listed(text, tmp_path, capsys):
    init.main([str(tmp_path / "m.pth"), "model.n_layer=2", "model.n_embd=64"])
    weights = official.load(tmp_path / "m.pth")
    del weights["head.weight"]
    weights["extra"] = torch.zeros(3)
    official.save(weights, tmp_path / "other.pth")
    common = arguments(text, "model=from_file", f"model.path={tmp_path / 'other.pth'}")
    err = refused(capsys, common)
    assert "missing: head.weight; unknown: extra" in err
    assert train.main([*common, "model.partial=true"]) == 0
    assert "initialised: head.weight; not taken: extra" in capsys.readouterr().out


def test_a_tuned_state_is_not_dropped(text, tmp_path):
    init.main([str(tmp_path / "m.pth"), "model.n_layer=2", "model.n_embd=64"])
    weights = official.load(tmp_path / "m.pth")
    weights["blocks.0.att.time_state"] = torch.zeros(1, 64, 64)
    official.save(weights, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match="time_state"):
        train.main(arguments(text, "model=from_file", f"model.path={tmp_path / 'state.pth'}"))


def test_a_checkpoint_of_a_model_that_the_file_has_no_more(tiny_run):
    (point,) = store.points(tiny_run / "checkpoints")
    session = SimpleNamespace(strategy=SimpleNamespace(shapes=Tensors(point, "model").shapes() | {"emb.weight": torch.Size((65536, 64))}))
    with pytest.raises(CheckpointError, match=r"the settings describe: emb\.weight, 1 in all; if the file of model\.path has changed, put it back, or set seed=2"):
        Session.restore(session, point)
