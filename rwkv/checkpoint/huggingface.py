"""Folders as Hugging Face's libraries read them: RWKV-7 as flash-linear-attention and rwkv7-hf, RWKV-4 as transformers.

The tensors are those of the official files under other names; a v7 folder holds low-rank matrices transposed and has
nothing for layer 0's unused v0 v1 v2.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkv.errors import CheckpointError
from rwkv.model.size import Size

_OUTER_V7 = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
_BLOCK_V7 = {
    "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm",
    "att.receptance": "attn.r_proj", "att.key": "attn.k_proj", "att.value": "attn.v_proj", "att.output": "attn.o_proj",
    "ffn.key": "ffn.key", "ffn.value": "ffn.value",
}  # fmt: skip
_OUTER_V4 = {"emb": "rwkv.embeddings", "ln_out": "rwkv.ln_out", "head": "head"}
_BLOCK_V4 = {"ln0": "pre_ln", "ln1": "ln1", "ln2": "ln2"}
_WORDS_V4 = {"k": "key", "v": "value", "r": "receptance"}


def name_of(key: str, version: str) -> tuple[str, bool]:
    """Official key -> (the folder's key, whether the tensor is transposed)."""
    outer, block, layers = (_OUTER_V7, _BLOCK_V7, "model.layers") if version == "v7" else (_OUTER_V4, _BLOCK_V4, "rwkv.blocks")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if not match:
        module, _, leaf = key.rpartition(".")
        return f"{outer[module]}.{leaf}", False
    layer, inner = f"{layers}.{match[1]}", match[2]
    module, _, leaf = inner.rpartition(".")
    if module in block:
        return f"{layer}.{block[module]}.{leaf}", False
    if version == "v4":
        part, _, rest = inner.partition(".")
        rest = re.sub(r"^time_mix_([kvr])$", lambda m: f"time_mix_{_WORDS_V4[m[1]]}", rest)
        return f"{layer}.{'attention' if part == 'att' else 'feed_forward'}.{rest}", False
    if low_rank := re.fullmatch(r"att\.([wavg])([012])", inner):
        part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[low_rank[2]]
        return f"{layer}.attn.{low_rank[1]}_lora.lora.{part}", low_rank[2] != "0"
    return f"{layer}.{inner.replace('att.', 'attn.')}", False


def shape_of(key: str, tensor: Tensor, version: str) -> Tensor:
    """[1, 1, C] as [C] where the folder has it so."""
    flat = version == "v7" and re.search(r"att\.(k_k|k_a|[wav]0)$|ffn\.x_k$", key)
    return tensor.reshape(-1) if flat else tensor


def save(weights: dict[str, Tensor], size: Size, folder: Path) -> None:
    """Write config.json and model.safetensors, in the tensors' own dtype.

    Raises:
        CheckpointError: a generation that these libraries do not have, or the folder cannot be written.
    """
    if size.version not in ("v4", "v7"):
        raise CheckpointError(f"{folder}: there is no Hugging Face form of RWKV {size.version} that others read; name a .pth or .safetensors file")
    out = {}
    for key, tensor in weights.items():
        if size.version == "v7" and re.fullmatch(r"blocks\.0\.att\.v[012]", key):
            continue
        name, transposed = name_of(key, size.version)
        tensor = shape_of(key, tensor, size.version).detach().cpu()
        out[name] = (tensor.mT if transposed else tensor).contiguous()
    try:
        folder.mkdir(parents=True)
        save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
        dtype = str(next(iter(out.values())).dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps({**config(size, weights), "torch_dtype": dtype}, indent=1))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def config(size: Size, weights: dict[str, Tensor]) -> dict:
    """config.json of a model of this size."""
    common = {"vocab_size": size.vocab_size, "hidden_size": size.n_embd, "num_hidden_layers": size.n_layer, "tie_word_embeddings": False}
    if size.version == "v4":
        return {
            "architectures": ["RwkvForCausalLM"], "model_type": "rwkv", **common, "attention_hidden_size": size.n_embd,
            "intermediate_size": 4 * size.n_embd, "context_length": 1024, "layer_norm_epsilon": 1e-5,
            "rescale_every": 0,  # another value halves weights in place when the model is read
        }  # fmt: skip
    rank = size.lora_rank
    return {
        "architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", **common, "head_dim": size.head_size, "num_heads": size.n_head,
        "intermediate_size": len(weights["blocks.0.ffn.key.weight"]), "hidden_ratio": 4.0, "hidden_act": "sqrelu",
        "decay_low_rank_dim": rank.w, "a_low_rank_dim": rank.a, "v_low_rank_dim": rank.v, "gate_low_rank_dim": rank.g,
        "value_dim": [size.n_embd] * size.n_layer, "norm_eps": 1e-5, "norm_bias": True, "norm_first": True, "fuse_norm": False,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "use_cache": True,
    }  # fmt: skip


def load(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder under their official keys. Raises CheckpointError if it holds something else."""
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: unreadable: {error}") from error
    if kind not in ("rwkv7", "rwkv"):
        raise CheckpointError(f"{folder}: model_type {kind!r} in config.json; read are 'rwkv7' (RWKV-7) and 'rwkv' (RWKV-4)")
    found: dict[str, Tensor] = {}
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors and no pytorch_model*.bin in it")
    for file in files:
        try:
            found |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling, zip and safetensors each raise their own
            raise CheckpointError(f"{file}: unreadable: {str(error).splitlines()[0]}") from error
    version = "v7" if kind == "rwkv7" else "v4"
    return {official: (x.mT.contiguous() if turned else x) for official, turned, x in _renamed(found, version)}


def _renamed(found: dict[str, Tensor], version: str):
    """(official key, whether the tensor is transposed, tensor) of each of the folder's; unknown keys stay as they are."""
    pattern = r"(?:model\.layers|rwkv\.blocks)\.(\d+)\."
    layers = {int(m[1]) for name in found if (m := re.match(pattern, name))}
    att = "k_k k_a r_k x_r x_w x_k x_v x_a x_g w0 w1 w2 a0 a1 a2 v0 v1 v2 g1 g2" if version == "v7" else "time_decay time_first time_mix_k time_mix_v time_mix_r"
    ffn = "x_k" if version == "v7" else "time_mix_k time_mix_r"
    linears = "att.receptance att.key att.value att.output ffn.key ffn.value" + (" att.ln_x" if version == "v7" else " ffn.receptance")
    keys = [f"{m}.{leaf}" for m in ("emb", "ln_out", "head") for leaf in ("weight", "bias")]
    for layer in layers:
        inner = [f"att.{n}" for n in att.split()] + [f"ffn.{n}" for n in ffn.split()]
        inner += [f"{m}.{leaf}" for m in ("ln0", "ln1", "ln2", *linears.split()) for leaf in ("weight", "bias")]
        keys += [f"blocks.{layer}.{n}" for n in inner]
    back = {name: (key, turned) for key in keys for name, turned in [name_of(key, version)]}
    for name, tensor in found.items():
        key, turned = back.get(name, (name, False))
        yield key, turned, tensor
