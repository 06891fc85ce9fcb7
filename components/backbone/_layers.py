"""What linear RNNs share: projections, gates, initial values, and the check of heads."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.errors import AuroraError

from ..kernels.linear import linear

# A QR decomposition costs the cube of the side. Larger matrices are drawn with independent entries of the same
# variance, which is as orthogonal as it matters at that size.
LARGEST_ORTHOGONAL_SIDE = 1024


def parameter(*shape: int) -> nn.Parameter:
    """An empty parameter."""
    return nn.Parameter(torch.empty(*shape))


def with_range(x: Tensor) -> Tensor:
    """x for a recurrence: it adds up, before a norm makes little of it, to more than the 65,504 that float16 holds."""
    return x.float() if x.dtype is torch.float16 else x


class Linear(nn.Linear):
    """A projection without bias, left empty: its model fills all parameters at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        return linear(x, self.weight)


class SwiGLU(nn.Module):
    """The gated MLP of arXiv 2002.05202."""

    def __init__(self, width: int, ffn_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, ffn_size)
        self.up_proj = Linear(width, ffn_size)
        self.down_proj = Linear(ffn_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GatedNorm(nn.RMSNorm):
    """Normalises what each head read, then gates it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """[..., V], [..., V] → [..., V]."""
        return super().forward(x.to(self.weight.dtype)) * F.silu(gate)


@torch.no_grad()
def orthogonal(weight: Tensor, gain: float) -> None:
    """Fills a matrix with a random (semi-)orthogonal one, times the gain."""
    if min(weight.shape) > LARGEST_ORTHOGONAL_SIDE:
        nn.init.normal_(weight, std=gain / math.sqrt(max(weight.shape)))
    else:
        wide = torch.empty_like(weight, dtype=torch.float32)
        weight.copy_(nn.init.orthogonal_(wide, gain))


@torch.no_grad()
def fill_steps(bias: Tensor) -> None:
    """What softplus turns into steps of 0.001 to 0.1, evenly in their logarithm."""
    step = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    bias.copy_(step + torch.log(-torch.expm1(-step)))


def check_heads(backbone: str, hidden_size: int, head_size: int) -> None:
    """AuroraError for a width that heads do not fill."""
    if hidden_size % head_size:
        below = hidden_size // head_size * head_size
        near = " and ".join(str(size) for size in (below, below + head_size) if size)
        raise AuroraError(f"backbone {backbone!r}: hidden_size {hidden_size} is not a multiple of head_size "
                          f"{head_size}; {near} would be")
