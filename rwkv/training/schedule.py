"""The learning rate as a function of the optimizer step and of the tokens seen."""

import math


def learning_rate(
    kind: str, lr: float, final: float, warmup_steps: int, step: int, tokens: int, tokens_per_step: float, budget: int
) -> float:
    """The official schedule: cosine in tokens after the warm-up, times a linear warm-up from 1 % in steps.

    Args:
        kind: "cosine", or "constant" after the warm-up.
        lr, final: the peak, and the end as a share of it (the official lr_final / lr_init).
        step, tokens: optimizer steps done before this one, and the tokens read in them.
        tokens_per_step, budget: tokens of a step on average, and of the whole run.
    """
    if kind == "cosine":
        skipped = warmup_steps * tokens_per_step
        p = min(max((tokens - skipped) / max(budget - skipped, 1), 0.0), 1.0)
        lr *= (0.5 + final / 2) + (0.5 - final / 2) * math.cos(math.pi * p)
    if step < warmup_steps:
        lr *= 0.01 + 0.99 * step / warmup_steps
    return lr
