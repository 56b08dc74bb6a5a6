"""The official .pth: round trips are bit-equal, and what does not fit is named."""

import pytest
import torch

from rwkv.checkpoint import official
from rwkv.errors import CheckpointError
from rwkv.model.rwkv import RWKV
from rwkv.model.size import LoraRank, Size

SIZE = Size(2, 64, 50, LoraRank(32, 32, 32, 64), head_size=32)


UNUSED = {f"blocks.0.att.v{i}" for i in range(3)}


@pytest.fixture
def weights():
    return {n: p.detach().bfloat16() for n, p in RWKV(SIZE).init_weights(1).named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_round_trip(weights, tmp_path):
    official.save(weights, tmp_path / "m.pth")
    loaded = official.load(tmp_path / "m.pth")
    assert same(loaded, weights) and official.size_of(loaded) == SIZE
    again = dict(official.build(loaded, torch.bfloat16).named_parameters())
    official.save(again, tmp_path / "n.pth")
    assert same(official.load(tmp_path / "n.pth"), weights)


def test_official_keys_and_shapes(weights):
    """As the official trainer reloads them strictly."""
    assert weights["blocks.1.att.x_r"].shape == weights["blocks.1.att.w0"].shape == weights["blocks.1.att.k_k"].shape == (1, 1, 64)
    assert weights["blocks.1.att.w1"].shape == (64, 32) and weights["blocks.1.att.r_k"].shape == (2, 32)
    att = "x_r x_w x_k x_v x_a x_g w1 w2 w0 a1 a2 a0 v1 v2 v0 g1 g2 k_k k_a r_k".split()
    att += [f"{n}.weight" for n in ("receptance", "key", "value", "output", "ln_x")] + ["ln_x.bias"]
    block = [f"att.{n}" for n in att] + ["ffn.x_k", "ffn.key.weight", "ffn.value.weight"]
    block += [f"{n}.{p}" for n in ("ln1", "ln2") for p in ("weight", "bias")]
    want = {f"blocks.{i}.{n}" for i in range(2) for n in block}
    want |= {"emb.weight", "head.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias"}
    assert weights.keys() == want


def test_released_layout_prefixes_and_squeezed_shapes(weights, tmp_path):
    released = {f"_forward_module.{k}": v.squeeze() for k, v in weights.items() if k not in UNUSED}
    official.save(released, tmp_path / "m.pth")
    model = official.build(official.load(tmp_path / "m.pth"))
    whole = official.build(weights)
    tokens = torch.randint(0, 50, (1, 20))
    torch.testing.assert_close(model(tokens)[0], whole(tokens)[0], rtol=0, atol=0)


def test_a_file_as_pytorch_wrote_before_zips(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(official.load(tmp_path / "old.pth"), weights)
    (tmp_path / "text.pth").write_text("no model")
    with pytest.raises(CheckpointError, match="neither a zip nor a pickle"):
        official.load(tmp_path / "text.pth")


def test_what_does_not_fit_is_named(weights):
    broken = dict(weights)
    del broken["ln_out.bias"]
    broken["extra.weight"] = torch.zeros(3)
    broken["blocks.1.ln1.weight"] = torch.zeros(3)
    message = r"missing: ln_out\.bias; unknown: extra\.weight; of another shape: blocks\.1\.ln1\.weight"
    with pytest.raises(CheckpointError, match=message):
        official.build(broken)


def test_a_tuned_initial_state(weights, tmp_path):
    """Kept by every conversion, and where generation begins."""
    states = {f"blocks.{i}.att.time_state": torch.randn(2, 32, 32).bfloat16() for i in range(2)}
    official.save(weights | states, tmp_path / "m.pth")
    loaded = official.load(tmp_path / "m.pth")
    official.write(official.complete(loaded), tmp_path / "m.safetensors")
    assert same(official.load(tmp_path / "m.safetensors"), weights | states)
    model = official.build(loaded)
    state = official.initial_state(loaded, model)
    assert torch.equal(state.wkv[0, 1], states["blocks.1.att.time_state"].float()) and not state.shift.any()
    assert official.initial_state(weights, model) is None
    del loaded["blocks.1.att.time_state"]
    with pytest.raises(CheckpointError, match="for each of 2 layers"):
        official.initial_state(loaded, model)


def test_a_run_exports_what_it_trained(tiny_run, tmp_path):
    weights = official.load(tiny_run)
    official.save(weights, tmp_path / "m.pth", torch.float32)
    assert same(official.load(tmp_path / "m.pth"), weights)
