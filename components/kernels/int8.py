"""Weights in int8 with one scale per output, for inference: half of what bfloat16 takes and a token reads.

Shape letters: K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .linear import linear

LARGEST = 127
ROWS_AT_ONCE = 64
"""So many outputs are widened to float32 at a time."""


class Int8Linear(nn.Module):
    """A projection with rounded weights; it has no gradient."""

    weight: Tensor  # [N, K] int8
    scale: Tensor  # [N] float32
    bias: Tensor | None  # [N]

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N]."""
        out = linear(x, self.weight, self.scale)
        return out if self.bias is None else out + self.bias


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] → int8 [N, K] and float32 [N]: the nearest multiples of 1/127 of the largest weight of each output."""
    rounded = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        wide = weight[rows].float()
        scale[rows] = wide.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
        rounded[rows] = (wide / scale[rows, None]).round()
    return rounded, scale


@torch.no_grad()
def quantize_linears(model: nn.Module, kind: type[nn.Linear]) -> int:
    """Replaces the linear layers of a kind below `model` that have memory, one after the other, so that memory only
    ever shrinks. How many there were."""
    replaced = 0
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, kind) and not child.weight.is_meta:
                bias = None if child.bias is None else child.bias.detach()
                setattr(module, name, Int8Linear(*quantize(child.weight.detach()), bias))
                replaced += 1
    return replaced
