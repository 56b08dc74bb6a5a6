"""Asks a peer, in a process that does not know this project: python peers.py PEER MODEL TOKENS.npy OUT.npz"""

import copy
import os
import sys

import numpy as np
import torch


def ask_rwkv(path: str, tokens: list[int], v7: bool) -> dict[str, np.ndarray]:
    """The `rwkv` package: logits of all tokens at once, in pieces of 4, 1 and the rest, and the final state."""
    os.environ.update(RWKV_JIT_ON="0", RWKV_CUDA_ON="0", **({"RWKV_V7_ON": "1"} if v7 else {}))
    from rwkv.model import RWKV

    model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
    whole, state = model.forward(tokens, None, full_output=True)
    pieces, carried = [], None
    for piece in (tokens[:4], tokens[4:5], tokens[5:]):
        out, carried = model.forward(piece, copy.deepcopy(carried), full_output=True)
        pieces.append(out.reshape(len(piece), -1))
    return {"whole": whole.numpy(), "pieces": torch.cat(pieces).numpy(), **{f"state{i}": s.float().numpy() for i, s in enumerate(state)}}


def ask_transformers(path: str, tokens: list[int], package: str) -> dict[str, np.ndarray]:
    if package == "rwkv7-hf":
        from rwkv7_hf import RWKV7ForCausalLM as Model
    else:
        from transformers import RwkvForCausalLM as Model
    model = Model.from_pretrained(path, dtype=torch.float32).eval()
    name = "past_key_values" if package == "rwkv7-hf" else "state"
    pieces, carried = [], None
    with torch.no_grad():
        for piece in (tokens[:4], tokens[4:5], tokens[5:]):
            out = model(torch.tensor([piece]), use_cache=True, **{name: carried})
            carried = out[name]
            pieces.append(out.logits[0])
        whole = model(torch.tensor([tokens])).logits[0]
    return {"whole": whole.float().numpy(), "pieces": torch.cat(pieces).float().numpy()}


if __name__ == "__main__":
    peer, path, tokens_file, out = sys.argv[1:]
    tokens = np.load(tokens_file).tolist()
    found = ask_rwkv(path, tokens, peer == "rwkv-v7") if peer.startswith("rwkv-v") else ask_transformers(path, tokens, peer)
    np.savez(out, **found)
