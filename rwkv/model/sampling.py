"""Generation: one token at a time from a constant-size state."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rwkv.model.rwkv import RWKV
from rwkv.model.state import State

PROMPT_CHUNK = 512  # tokens of a prompt read at once


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator, top_k: int = 0) -> int:
    """Draw a token from logits [V] (on the CPU), among the most likely ones whose probabilities first reach top_p, and
    among the top_k most likely (0: all).

    temperature 0 takes the most likely one.
    """
    if temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits.double(), -1)
    if top_p < 1 or top_k:
        ordered, order = probs.sort(descending=True, stable=True)
        keep = ordered.cumsum(-1) - ordered < top_p  # the first token over the limit still counts
        if top_k:
            keep[top_k:] = False
        probs = torch.zeros_like(probs).scatter(0, order[keep], ordered[keep])
    behind = probs.log() - probs.max().log()  # 0 for the most likely: no temperature makes all of them vanish
    return int(torch.multinomial(torch.softmax(behind / temperature, -1), 1, generator=generator))


@torch.no_grad()
def generate(
    model: RWKV,
    prompt: list[int],
    *,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    top_k: int = 0,
    presence: float = 0.0,
    frequency: float = 0.0,
    stop: int | None = 0,
    state: State | None = None,
) -> Iterator[int]:
    """Token ids that follow `prompt` (at least one id), at most `tokens` of them, ending before the id `stop`.

    Args:
        presence, frequency: what is taken off the logit of each token written so far, once and for each time.
        state: before the prompt; None for a document's start.
    """
    device = model.emb.weight.device
    generator = torch.Generator().manual_seed(seed)
    written: dict[int, int] = {}
    for start in range(0, len(prompt), PROMPT_CHUNK):
        hidden, state = model(torch.tensor([prompt[start : start + PROMPT_CHUNK]], device=device), state)
    for _ in range(tokens):
        logits = model.logits(hidden[0, -1]).cpu()
        for token, times in written.items() if presence or frequency else ():
            logits[token] -= presence + frequency * times
        token = pick(logits, temperature, top_p, generator, top_k)
        if token == stop:
            return
        written[token] = written.get(token, 0) + 1
        yield token
        hidden, state = model(torch.tensor([[token]], device=device), state)
