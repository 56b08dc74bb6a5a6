"""Model files: the official `.pth` (a plain dict of tensors, keyed as RWKV-LM names them), and what else holds a model."""

import dataclasses
import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkv.checkpoint import huggingface, shards, store
from rwkv.checkpoint.run import RunFolder
from rwkv.errors import CheckpointError
from rwkv.model.rwkv import GENERATIONS, RWKV
from rwkv.model.size import Size
from rwkv.model.state import State

UNUSED = {f"blocks.0.att.v{i}" for i in range(3)}  # layer 0 of v7 has no use for them, and released files no such keys
PREFIXES = ("_forward_module.", "model.")


def write(weights: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model in the format that the path's name says: .pth, .safetensors, or a Hugging Face folder.

    Args:
        dtype: of all tensors; None keeps each one's own.

    Raises:
        CheckpointError: the path cannot be written, or there is no such form of this generation.
    """
    if path.suffix == ".pth":
        return save(weights, path, dtype)
    weights = _plain(weights, dtype)
    if path.suffix == ".safetensors":
        return _replace(path, lambda temp: save_file(weights, temp, metadata={"format": "pt"}))
    return huggingface.save(weights, size_of(weights), path)


def save(weights: dict[str, Tensor], path: Path, dtype: torch.dtype | None = torch.bfloat16) -> None:
    """Write weights as the official trainer reloads them strictly: its keys and shapes, all in one dtype, a `.pth`."""
    weights = _plain(weights, dtype)
    _replace(path, lambda temp: torch.save(weights, temp))


def _plain(weights: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """On the CPU, each in one piece, in `dtype` if that is given."""
    return {name: w.detach().to("cpu", dtype or w.dtype).contiguous() for name, w in weights.items()}


def _replace(path: Path, write_to) -> None:
    """A whole file or none."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(temp)
        os.replace(temp, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        temp.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def load(path: Path) -> dict[str, Tensor]:
    """The weights, under their official keys, of a `.pth`, a `.safetensors` file, a Hugging Face folder, a checkpoint
    folder, or a run folder's newest sound checkpoint. Nothing in a file is ever run.

    Raises:
        CheckpointError: missing, damaged, holding more than plain tensors, or no RWKV.
    """
    if path.is_dir():
        weights = huggingface.load(path) if (path / "config.json").is_file() else _from_folder(path)
    elif path.suffix == ".safetensors" and path.exists():
        weights = _read_safetensors(path)
    else:
        weights = _read_pth(path)
    for prefix in PREFIXES:
        weights = {name.removeprefix(prefix): w for name, w in weights.items()}
    if "emb.weight" not in weights or "blocks.0.att.receptance.weight" not in weights:
        raise CheckpointError(f"{path}: not an RWKV model: it has no emb.weight or no blocks.0.att.receptance.weight")
    return weights


def _read_pth(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"PK" and start[:1] != b"\x80":  # a zip, or a pickle as PyTorch wrote before 1.6
            raise ValueError("it is neither a zip nor a pickle, as torch.save writes")
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than plain tensors, and loading it could run code") from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: not a readable .pth file: {str(error).splitlines()[0]}") from error
    if not isinstance(weights, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise CheckpointError(f"{path}: not an official .pth, which is one dict of tensors")
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: unreadable: {error}") from error


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
    return dict(shards.Tensors(checkpoint, "model"))


def size_of(weights: dict[str, Tensor]) -> Size:
    """The generation and sizes that a file's tensors have. Raises CheckpointError if it is of none, or not whole."""
    module, version = next(((m, v) for m in GENERATIONS.values() if (v := m.version_in(_time_mix(weights, 0)))), (None, None))
    if module is None:
        raise CheckpointError(f"not an RWKV of a known generation ({', '.join(GENERATIONS)}): layer 0 has {', '.join(sorted(_time_mix(weights, 0))) or 'no time-mix'}")
    try:
        V, C = weights["emb.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        head_size, rank = module.heads_and_rank(_time_mix(weights, layers - 1))
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"not a whole RWKV-{version[1:]} model: {error} is missing or of another form") from error
    return Size(layers, C, V, rank, head_size, version)


def _time_mix(weights: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    start = f"blocks.{layer}.att."
    return {name.removeprefix(start): w for name, w in weights.items() if name.startswith(start)}


def describe(weights: dict[str, Tensor]) -> str:
    """Generation, sizes and count, in words."""
    size = size_of(weights)
    heads = "" if size.version == "v4" else f", heads of {size.head_size}"
    ranks = f", ranks {' '.join(map(str, dataclasses.astuple(size.lora_rank)))}" if size.lora_rank else ""
    name = {"v5": "5.2"}.get(size.version, size.version[1:])
    count = sum(w.numel() for w in weights.values())
    return f"RWKV-{name} {size.n_layer} x {size.n_embd}{heads}{ranks}, vocabulary {size.vocab_size}, {count:,} parameters"


def complete(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with exactly the keys and shapes of the official trainer's files, which it reloads strictly.

    Raises:
        CheckpointError: names every missing, unknown or misshapen key.
    """
    with torch.device("meta"):
        expected = dict(RWKV(size_of(weights)).named_parameters())
    tuned = {n for n in weights if n.endswith("att.time_state")}  # an initial state, beside the model
    missing = expected.keys() - weights.keys() - UNUSED
    unknown = weights.keys() - expected.keys() - tuned
    misshapen = [n for n in expected.keys() & weights.keys() if weights[n].numel() != expected[n].numel()]
    if missing or unknown or misshapen:
        parts = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
        raise CheckpointError("; ".join(f"{kind}: {', '.join(sorted(names)[:8])}" for kind, names in parts.items() if names))
    dtype = weights["emb.weight"].dtype
    whole = {n: weights[n].view(p.shape) if n in weights else torch.zeros(p.shape, dtype=dtype) for n, p in expected.items()}
    return whole | {n: weights[n] for n in tuned}


def fitting(size: Size, weights: dict[str, Tensor], partial: bool) -> tuple[dict[str, Tensor], str]:
    """What a model of this size takes of a file's weights, in its shapes; and, if `partial`, what was not taken and what was
    not there, in words.

    Raises:
        CheckpointError: not `partial`, and the file is not exactly of this model; or it holds a tuned initial state.
    """
    if any(name.endswith("time_state") for name in weights):
        raise CheckpointError("the file holds a tuned initial state (time_state); training from one is not built yet")
    if not partial:
        return complete(weights), ""
    with torch.device("meta"):
        params = dict(RWKV(size).named_parameters())
    fits = {n: w.view(params[n].shape) for n, w in weights.items() if n in params and w.numel() == params[n].numel()}
    new, left = sorted(params.keys() - fits.keys()), sorted(weights.keys() - fits.keys())
    return fits, f"; initialised: {', '.join(new) or 'nothing'}; not taken: {', '.join(left) or 'nothing'}"


def build(weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> RWKV:
    """A model with these weights. Raises CheckpointError as `complete` does."""
    with torch.device("meta"):
        model = RWKV(size_of(weights))
    model = model.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in complete(weights).items():
            if not name.endswith("att.time_state"):
                model.get_parameter(name).copy_(weight)
    return model


def initial_state(weights: dict[str, Tensor], model: RWKV) -> State | None:
    """The tuned initial state that a file may hold, time_state [H, value, key] of each layer, for one row; None if it does not."""
    found = [weights.get(f"blocks.{i}.att.time_state") for i in range(model.size.n_layer)]
    if all(x is None for x in found):
        return None
    zero = State.zeros(model.size, 1, model.emb.weight.dtype, model.emb.weight.device)
    if any(x is None or x.shape != zero.wkv.shape[2:] for x in found):
        raise CheckpointError(f"time_state: wanted one of shape {list(zero.wkv.shape[2:])} for each of {model.size.n_layer} layers")
    return State(zero.shift, torch.stack(found).unsqueeze(0).to(zero.wkv))
