"""The official `.pth`: a plain dict of tensors, keyed as RWKV-LM names them. Loading never runs code from the file."""

import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rwkv.checkpoint import store
from rwkv.checkpoint.run import RunFolder
from rwkv.errors import CheckpointError
from rwkv.model.rwkv import RWKV
from rwkv.model.size import FinchRank, LoraRank, Size

PREFIXES = ("_forward_module.", "model.")


def save(weights: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights as the official trainer reloads them strictly: its keys and shapes, all in one dtype.

    Raises:
        CheckpointError: the path cannot be written.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: w.detach().to("cpu", dtype).contiguous() for name, w in weights.items()}, temp)
        os.replace(temp, path)
    except (OSError, RuntimeError) as error:
        temp.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def load(path: Path) -> dict[str, Tensor]:
    """The weights of a `.pth`, of a checkpoint folder, or of a run folder's newest sound checkpoint.

    Raises:
        CheckpointError: missing, damaged, holding more than plain tensors, or no RWKV.
    """
    if path.is_dir():
        return _from_folder(path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than plain tensors, and loading it could run code") from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: not a readable .pth file: {str(error).splitlines()[0]}") from error
    if not isinstance(weights, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise CheckpointError(f"{path}: not an official .pth, which is one dict of tensors")
    for prefix in PREFIXES:
        weights = {name.removeprefix(prefix): w for name, w in weights.items()}
    if "emb.weight" not in weights or "blocks.0.att.receptance.weight" not in weights:
        raise CheckpointError(f"{path}: not an RWKV model: it has no emb.weight or no blocks.0.att.receptance.weight")
    return weights


def _from_folder(path: Path) -> dict[str, Tensor]:
    if (path / store.MANIFEST).is_file():
        wrong = list(store.problems(path))
        if wrong:
            raise CheckpointError(f"{path} is damaged: {'; '.join(wrong)}")
        checkpoint = path
    else:
        checkpoint = store.newest_good(RunFolder(path).checkpoints, warn=print)
    if checkpoint is None:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run folder with one")
    try:
        return load_file(checkpoint / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint / 'model.safetensors'}: unreadable: {error}") from error


def version_of(weights: dict[str, Tensor]) -> str:
    """The generation, from the parameters that only it has."""
    first = {name.removeprefix("blocks.0.att.") for name in weights if name.startswith("blocks.0.att.")}
    if "r_k" in first:
        return "v7"
    if "time_maa_x" in first:
        return "v6"
    if "ln_x.weight" not in first:
        return "v4"
    if "gate.weight" not in first:
        return "v5.0"
    decay = weights["blocks.0.att.time_decay"]
    return "v5" if decay.dim() > 1 and decay.shape[1] > 1 else "v5.1"


def size_of(weights: dict[str, Tensor]) -> Size:
    """The generation and sizes that a file's tensors have. Raises CheckpointError if one is missing."""
    version = version_of(weights)
    try:
        V, C = weights["emb.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        at = f"blocks.{layers - 1}.att."  # released v7 files have no v1 in layer 0
        head_size, rank = 64, None
        if version == "v7":
            head_size = weights[f"{at}r_k"].shape[1]
            rank = LoraRank(*(weights[f"{at}{c}1"].shape[1] if f"{at}{c}1" in weights else 32 for c in "wavg"))
        elif version == "v6":
            head_size = weights[f"{at}time_faaaa"].shape[1]
            rank = FinchRank(weights[f"{at}time_maa_w1"].shape[1] // 5, weights[f"{at}time_decay_w1"].shape[1])
        elif version != "v4":
            head_size = C // len(weights[f"{at}time_decay"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"not a whole RWKV-{version[1:]} model: {error} is missing or of another form") from error
    return Size(layers, C, V, rank, head_size, version)


def build(weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> RWKV:
    """A model with these weights. Raises CheckpointError that names every missing, unknown or misshapen key."""
    size = size_of(weights)
    with torch.device("meta"):
        model = RWKV(size)
    model = model.to(dtype).to_empty(device="cpu")
    expected = dict(model.named_parameters())
    unused = {f"blocks.0.att.v{i}" for i in range(3)}  # layer 0 of v7 has no use for them, and released files no such keys
    missing = expected.keys() - weights.keys() - unused
    unknown = weights.keys() - expected.keys()
    misshapen = [n for n in expected.keys() & weights.keys() if weights[n].numel() != expected[n].numel()]
    if missing or unknown or misshapen:
        parts = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
        raise CheckpointError("; ".join(f"{kind}: {', '.join(sorted(names)[:8])}" for kind, names in parts.items() if names))
    with torch.no_grad():
        for name, param in expected.items():
            if name in weights:
                param.copy_(weights[name].view(param.shape))
            else:
                param.zero_()
    return model
