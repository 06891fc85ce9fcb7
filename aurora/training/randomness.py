"""Randomness as a function of where training is, so that there is no generator to save."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(run: int, step: int, rank: int, device: torch.device) -> None:
    """Seeds every generator for the step to come, by the seed of the run, the step and the rank."""
    seed = (run * 1_000_003 + step) * 4_099 + rank
    # torch.manual_seed would also queue a call with its stack for every accelerator that is not in use
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
