"""Generation: one token at a time from a constant-size state."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rwkv.model.rwkv import RWKV
from rwkv.model.state import State

PROMPT_CHUNK = 512  # tokens of a prompt read at once


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from logits [V] (on the CPU), among the most likely ones whose probabilities first reach top_p.

    temperature 0 takes the most likely one.
    """
    if temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits.double(), -1)
    if top_p < 1:
        ordered, order = probs.sort(descending=True, stable=True)
        keep = ordered.cumsum(-1) - ordered < top_p  # the first token over the limit still counts
        probs = torch.zeros_like(probs).scatter(0, order[keep], ordered[keep])
    behind = probs.log() - probs.max().log()  # 0 for the most likely: no temperature makes all of them vanish
    return int(torch.multinomial(torch.softmax(behind / temperature, -1), 1, generator=generator))


@torch.no_grad()
def generate(
    model: RWKV, prompt: list[int], *, tokens: int, temperature: float, top_p: float, seed: int, stop: int | None = 0
) -> Iterator[int]:
    """Token ids that follow `prompt` (at least one id), at most `tokens` of them, ending before the id `stop`."""
    device = model.emb.weight.device
    generator = torch.Generator().manual_seed(seed)
    state: State | None = None
    for start in range(0, len(prompt), PROMPT_CHUNK):
        hidden, state = model(torch.tensor([prompt[start : start + PROMPT_CHUNK]], device=device), state)
    for _ in range(tokens):
        token = pick(model.logits(hidden[0, -1]).cpu(), temperature, top_p, generator)
        if token == stop:
            return
        yield token
        hidden, state = model(torch.tensor([[token]], device=device), state)
