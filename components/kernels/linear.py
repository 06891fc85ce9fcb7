"""x · wᵀ where no gradient is wanted: on a CPU by our own kernels or the faster library, elsewhere by torch.

Weights may be int8 with one scale per output: half of what bfloat16 takes and a token reads.

Shape letters: T positions, K inputs, N outputs.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._dense import dense
from ._native import address, library, missing

ACTIVATIONS = {None: 0, "squared_relu": 1}
FEW = 8
"""Up to so many positions memory is the limit, and weights are read once for all of them."""
LARGEST = 127
"""Of int8, to either side."""
ROWS_AT_ONCE = 64
"""So many outputs are widened to float32 at a time."""


def linear(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, *, activation: str | None = None, few: int = FEW
) -> Tensor:
    """[..., N]: x [..., K] times weight [N, K] transposed, through the activation: none or "squared_relu".

    The weight has the type of x, or is int8 with one scale per output: float32 [N]. Up to `few` positions are computed
    one by one to the last bit, so that none depends on how many there are.
    """
    rows = x.reshape(-1, x.shape[-1])
    if _serves(rows, weight, scale):
        out = _few(rows, weight, scale) if len(rows) <= few else _many(rows, weight, scale, ACTIVATIONS[activation])
        if out is not None:
            return (_activate(out, activation) if len(rows) <= few else out).view(*x.shape[:-1], -1)
    if scale is None:
        return _activate(dense(x, weight), activation)
    return linear_reference(x, weight, scale, activation=activation)


def project(x: Tensor, module: Any, *, activation: str | None = None, few: int = FEW) -> Tensor:
    """[..., N]: x through a linear layer without bias, whose weight may be int8."""
    return linear(x, module.weight, getattr(module, "scale", None), activation=activation, few=few)


def linear_reference(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """The same by torch."""
    if scale is None:
        return _activate(F.linear(x, weight), activation)
    return _activate((F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype), activation)


def _activate(x: Tensor, activation: str | None) -> Tensor:
    return x if activation is None else torch.relu(x).square()


def _serves(x: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
    tensors = [x, weight] if scale is None else [x, weight, scale]
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype is (x.dtype if scale is None else torch.int8)
        and all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0 and (weight.is_contiguous() or weight.stride() == (1, len(weight)))
        and missing("linear") is None
    )


def _few(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    x, out = x.contiguous(), x.new_empty(len(x), len(weight))
    library("linear").gemv(
        *map(address, (x, weight, scale, out)), len(x), *weight.shape, x.dtype is torch.bfloat16, scale is not None,
        not weight.is_contiguous(), torch.get_num_threads(),
    )
    return out


def _many(x: Tensor, weight: Tensor, scale: Tensor | None, activation: int) -> Tensor | None:
    if not has_tiles():
        return None
    x, out = x.contiguous(), x.new_empty(len(x), len(weight))
    transposed = not weight.is_contiguous()
    library("linear").linear(
        *map(address, (x, weight, scale, None, out)), len(x), *weight.shape, x.shape[1],
        weight.stride(1) if transposed else weight.stride(0), len(weight), x.dtype is torch.bfloat16, scale is not None,
        transposed, activation, torch.get_num_threads(),
    )
    return out


@cache
def has_tiles() -> bool:
    """Whether this process may use the tile unit (AMX)."""
    return bool(library("linear").linear_supported())


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
