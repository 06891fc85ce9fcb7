"""The learning rate as a pure function of the step: nothing to store, nothing to restore."""

from __future__ import annotations

import math


def warmup_steps(total: int, ratio: float) -> int:
    """Steps of a warm-up that takes `ratio` of the total; at least one when there is a warm-up at all."""
    return max(1, round(ratio * total)) if ratio > 0 else 0


def lr_factor(step: int, *, total: int, warmup_ratio: float, start_factor: float) -> float:
    """What the peak rate is multiplied with in step `step` of `total`, counted from 0.

    Linear from `start_factor` to 1 over the warm-up, then half a cosine that reaches 0 at `total`.
    """
    warmup = warmup_steps(total, warmup_ratio)
    if step < warmup:
        return start_factor + (1.0 - start_factor) * step / warmup
    if step >= total:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))
