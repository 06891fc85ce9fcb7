"""What is measured of a step beside its loss: norms by slot, gradient noise, arithmetic, memory."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from aurora.assemble import WEIGHTED_SLOTS
from aurora.model import AuroraModel
from aurora.training.flat import flat_norms, is_flat
from aurora.training.parallel import sum_over_ranks, world_size
from aurora.types import State


def gradient_norms(model: AuroraModel) -> dict[str, float]:
    """The norm of every slot's gradients, sharded ones as a whole; slots without any are left out. Collective."""
    return _norms(model, {slot: [p.grad for p in getattr(model, slot).parameters() if p.grad is not None]
                          for slot in WEIGHTED_SLOTS})


def weight_norms(model: AuroraModel) -> dict[str, float]:
    """The norm of what learns of every slot. Collective when sharded."""
    return _norms(model, {slot: [p.detach() for p in getattr(model, slot).parameters() if p.requires_grad]
                          for slot in WEIGHTED_SLOTS})


def total_norm(norms: Mapping[str, float]) -> float:
    """The norm of all slots together."""
    return math.sqrt(sum(norm * norm for norm in norms.values()))


def state_norms(states: State) -> dict[str, float]:
    """By name of a state: the root of the mean square of a layer's elements, averaged over the layers, and the largest
    element of all."""
    found = {}
    for name, tensor in states.items():
        layers = tensor.float().flatten(1)
        found[f"state_rms_{name}"] = float(layers.square().mean(1).sqrt().mean())
        found[f"state_max_{name}"] = float(layers.abs().max())
    return found


class Noise(NamedTuple):
    """The two quantities whose quotient is the simple noise scale (McCandlish et al. 2018, appendix A.1), in targets.

    Each is unbiased and noisy: divide their averages over many steps.
    """

    trace: float  # of the covariance of a target's gradient
    square: float  # of the norm of the true gradient

    @classmethod
    def between(cls, small: tuple[float, float], large: tuple[float, float]) -> Noise | None:
        """From (squared norm of the mean gradient, targets) of a part of a batch and of the whole; None when the part
        is the whole or nothing, or a norm is not finite."""
        (norm_small, small_count), (norm_large, large_count) = small, large
        if not 0 < small_count < large_count or not math.isfinite(norm_small + norm_large):
            return None
        square = (large_count * norm_large - small_count * norm_small) / (large_count - small_count)
        return cls((norm_small - norm_large) / (1 / small_count - 1 / large_count), square)


def first_rows(norm: float, targets: float, *, reduced: bool, device: torch.device) -> tuple[float, float]:
    """The squared norm of the mean gradient of a step's first rows, and their targets, from the norm of the summed
    gradient and the targets of this rank's row: averaged over the ranks, or of the rows of all of them where gradients
    are `reduced` already. Collective."""
    ranks = world_size()
    if reduced:
        targets = sum_over_ranks([targets], device)[0]
        return (norm * ranks / max(1.0, targets)) ** 2, targets
    square, targets = sum_over_ranks([(norm / max(1.0, targets)) ** 2, targets], device)
    return square / ranks, targets / ranks


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on its GPU, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _norms(model: AuroraModel, tensors: Mapping[str, list[Tensor]]) -> dict[str, float]:
    if is_flat(model):
        return flat_norms(tensors, next(model.parameters()).device)
    return {slot: _norm(found) for slot, found in tensors.items() if found}


def _norm(tensors: list[Tensor]) -> float:
    norm = nn.utils.get_total_norm(tensors)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
