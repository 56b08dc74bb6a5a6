"""python -m rwkv.convert: formats into each other, bit for bit."""

import json

import pytest
import torch

from rwkv import convert, export
from rwkv.checkpoint import official
from rwkv.errors import CheckpointError, ConfigError
from rwkv.model.rwkv import GENERATIONS
from tests.model.test_generations import random_model


def weights_of(version, dtype):
    return {n: p.detach().to(dtype) for n, p in random_model(version, torch.float32).named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].shape == b[n].shape for n in a)


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_there_and_back(version, dtype, tmp_path, capsys):
    weights = weights_of(version, dtype)
    official.save(weights, tmp_path / "a.pth", dtype)
    path = tmp_path / "a.pth"
    for name in ("b.safetensors", *(["c"] if version in ("v4", "v7") else []), "d.pth"):
        assert convert.main([str(path), str(tmp_path / name), "--check"]) == 0
        path = tmp_path / name
    for unused in ("v0", "v1", "v2") if version == "v7" else ():
        weights[f"blocks.0.att.{unused}"] = torch.zeros_like(weights[f"blocks.0.att.{unused}"])  # no HF folder holds them
    assert same(official.load(path), weights)
    out = capsys.readouterr().out
    name = {"v5": "5.2"}.get(version, version[1:])
    assert f"RWKV-{name} 3 x 64" in out and "largest difference 0.0e+00" in out


def test_as_released(tmp_path):
    weights = weights_of("v7", torch.bfloat16)
    official.save(weights, tmp_path / "a.pth")
    assert convert.main([str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--released", "--check"]) == 0
    assert official.load(tmp_path / "b.pth").keys() == weights.keys() - {f"blocks.0.att.v{i}" for i in range(3)}


def test_no_folder_for_v6(tmp_path):
    official.save(weights_of("v6", torch.float32), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no Hugging Face form of RWKV v6"):
        convert.main([str(tmp_path / "a.pth"), str(tmp_path / "out")])


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model_type 'llama'"):
        convert.main([str(tmp_path), str(tmp_path / "out.pth")])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv7"}))
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        convert.main([str(tmp_path), str(tmp_path / "out.pth")])


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_hostile_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv"}))
    torch.save({"rwkv.embeddings.weight": Payload(tmp_path / "owned")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: unreadable"):
        convert.main([str(tmp_path), str(tmp_path / "out.pth")])
    assert not (tmp_path / "owned").exists()


def test_nothing_of_a_run_is_a_pickle(tiny_run, tmp_path):
    """Whatever its settings hold, paths among them: no file of the run is a zip or pickle as torch.save writes, an exported .pth but tensors."""
    files = [file for file in tiny_run.rglob("*") if file.is_file()]
    assert any(file.suffix == ".safetensors" for file in files)
    assert [file for file in files if file.read_bytes()[:2] == b"PK" or file.read_bytes()[:1] == b"\x80"] == []
    assert export.main([str(tiny_run), str(tmp_path / "model.pth")]) == 0
    weights = torch.load(tmp_path / "model.pth", weights_only=True)
    assert type(weights) is dict and all(type(x) is torch.Tensor for x in weights.values())


def test_refuses_to_overwrite(tmp_path):
    official.save(weights_of("v7", torch.float32), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="exists already"):
        convert.main([str(tmp_path / "a.pth"), str(tmp_path / "a.pth")])
