"""RWKV-7 (Goose, x070), arXiv 2503.14456; parameters are named as in the authors' checkpoints.

Shape letters: T packed positions, S sequences, D width, H heads, K head width, L layers, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.options import PositiveInt
from aurora.registry import BACKBONE

from ..kernels.wkv7 import wkv7, wkv7_step
from ._layers import Linear, check_heads, orthogonal, parameter, with_range
from ._layouts_rwkv7 import FAMILY
from ._linear_rnn import Span
from ._rwkv import GROUP_NORM_EPS, RWKV

# a position forgets at most exp(-exp(-1/2)), so 45 % of a channel stays
STRONGEST_LOG_DECAY = -math.exp(-0.5)


class Ranks(NamedTuple):
    """The widths of what the low-rank projections pass through."""

    decay: int
    rate: int
    value: int
    gate: int


class TimeMix(nn.Module):
    """Reads the past through the WKV-7 operator, a generalised delta rule."""

    def __init__(self, width: int, head_size: int, ranks: Ranks, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.heads = width // head_size
        self.x_r = parameter(1, 1, width)
        self.x_w = parameter(1, 1, width)
        self.x_k = parameter(1, 1, width)
        self.x_v = parameter(1, 1, width)
        self.x_a = parameter(1, 1, width)
        self.x_g = parameter(1, 1, width)
        self.w0 = parameter(1, 1, width)
        self.w1 = parameter(width, ranks.decay)
        self.w2 = parameter(ranks.decay, width)
        self.a0 = parameter(1, 1, width)
        self.a1 = parameter(width, ranks.rate)
        self.a2 = parameter(ranks.rate, width)
        if not first:
            self.v0 = parameter(1, 1, width)
            self.v1 = parameter(width, ranks.value)
            self.v2 = parameter(ranks.value, width)
        self.g1 = parameter(width, ranks.gate)
        self.g2 = parameter(ranks.gate, width)
        self.k_k = parameter(1, 1, width)
        self.k_a = parameter(1, 1, width)
        self.r_k = parameter(self.heads, head_size)
        self.receptance = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.output = Linear(width, width)
        self.ln_x = nn.GroupNorm(self.heads, width, eps=GROUP_NORM_EPS)

    def forward(
        self, x: Tensor, before: Tensor, v_first: Tensor | None, *, row: Span, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[T, D], what stood before each position [T, D], the values of the first layer [T, D] (none in the first
        layer), state [S, H, K, K] → [T, D], those values, and the next state."""
        difference = before - x
        shares = (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        r, w, k, v, a, g = (torch.addcmul(x, difference, share[0]) for share in shares)
        r, w, k = with_range(self.receptance(r)), self._log_decay(w), self.key(k)
        g = torch.sigmoid(g @ self.g1) @ self.g2
        v, v_first = self._value(v, v_first)
        rate = torch.sigmoid(self.a0[0] + a @ self.a1 @ self.a2)
        heads = (len(x), self.heads, -1)
        removed = F.normalize((k * self.k_k[0]).view(heads), dim=-1).flatten(-2)
        k = k * torch.addcmul(1 - self.k_a[0], rate, self.k_a[0])
        # under autocast some of these are wider than others; the operator takes them alike, but for the decay
        r, k, v, taken, given = (part.to(r.dtype).view(heads) for part in (r, k, v, -removed, removed * rate))
        y, state = row.recur(wkv7, wkv7_step, r, w.view(heads), k, v, taken, given, state=state)
        own = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output((self.ln_x(y.flatten(-2)) + own.flatten(-2)) * g), v_first, state

    def _value(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values [T, D], drawn towards those of the first layer, and those."""
        v = self.value(x)
        if v_first is None:
            return v, v
        share = torch.sigmoid(self.v0[0] + x @ self.v1 @ self.v2)
        return torch.addcmul(v, v_first - v, share), v_first

    def _log_decay(self, x: Tensor) -> Tensor:
        """[T, D], wide: decays next to one would lose all in bfloat16."""
        wide = torch.promote_types(x.dtype, torch.float32)
        change = torch.tanh(x @ self.w1) @ self.w2
        return STRONGEST_LOG_DECAY * torch.sigmoid(self.w0[0].to(wide) + change.to(wide))

    def initialise(self, depth: float, height: float) -> None:
        """Low-rank projections start silent, so that what they steer begins at its constant."""
        width, head = self.x_r.shape[-1], self.r_k.shape[-1]
        channel = torch.arange(width, device=self.x_r.device)
        share = channel / width
        for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            getattr(self, f"x_{name}").copy_(1 - share ** (power * height))

        along = channel / max(1, width - 1)
        within = 2 * (channel % head) / max(1, head - 1) - 1  # from -1 to 1 in each head
        zigzag = within * within.abs()
        self.w0.copy_(-5.5 + 6 * along ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5))
        self.k_k.copy_(0.71 - 0.1 * (along - 0.5))
        nn.init.constant_(self.k_a, 1.02)
        nn.init.constant_(self.r_k, -0.04)
        if not self.first:
            self.v0.copy_(0.73 - 0.4 * (along - 0.5))
            _low_rank(self.v1, self.v2)
        for into, out in ((self.w1, self.w2), (self.a1, self.a2), (self.g1, self.g2)):
            _low_rank(into, out)

        orthogonal(self.receptance.weight, 1.0)
        orthogonal(self.key.weight, 0.1)
        orthogonal(self.value.weight, 1.0)
        nn.init.zeros_(self.output.weight)


class ChannelMix(nn.Module):
    """Works on each position and the one before it."""

    def __init__(self, width: int, ffn_size: int) -> None:
        super().__init__()
        self.x_k = parameter(1, 1, width)
        self.key = Linear(width, ffn_size)
        self.value = Linear(ffn_size, width)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """[T, D], what stood before each position [T, D] → [T, D]."""
        k = torch.addcmul(x, before - x, self.x_k[0])
        value: Tensor = self.value(torch.relu(self.key(k)).square())
        return value

    def initialise(self, height: float) -> None:
        """Fills the parameters; `height` falls from 1 to almost 0 with depth."""
        width = self.x_k.shape[-1]
        share = torch.arange(width, device=self.x_k.device) / width
        self.x_k.copy_(1 - share ** (height**4))
        orthogonal(self.key.weight, 1.0)
        nn.init.zeros_(self.value.weight)


@BACKBONE.register
class RWKV7(RWKV):
    """RWKV-7 (Goose), a linear RNN that overwrites what it holds for a key; defaults are those of the 1.5B model."""

    layouts = FAMILY
    carried = (None,)  # the values of the first layer, which gives them

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: PositiveInt = 2048,
        layers: PositiveInt = 24,
        head_size: PositiveInt = 64,
        ffn_size: PositiveInt | None = None,
        decay_rank: PositiveInt | None = None,
        rate_rank: PositiveInt | None = None,
        value_rank: PositiveInt | None = None,
        gate_rank: PositiveInt | None = None,
    ) -> None:
        ffn_size = 4 * hidden_size if ffn_size is None else ffn_size
        check_heads("rwkv7", hidden_size, head_size)
        given = {"decay": decay_rank, "rate": rate_rank, "value": value_rank, "gate": gate_rank}
        ranks = usual_ranks(hidden_size)._replace(**{name: rank for name, rank in given.items() if rank is not None})
        super().__init__(vocab_size, hidden_size, head_size, (
            (TimeMix(hidden_size, head_size, ranks, first=layer == 0), ChannelMix(hidden_size, ffn_size))
            for layer in range(layers)
        ))


def usual_ranks(width: int) -> Ranks:
    """The ranks of the published models, which grow with the width: 64, 64, 32, 128 at 768 and 1024, 96, 96, 64, 256
    at 2048, 96, 96, 64, 320 at 2560."""
    root = width**0.5
    return Ranks(
        decay=_nearest(1.8 * root, 32), rate=_nearest(1.8 * root, 32), value=_nearest(1.3 * root, 32),
        gate=_nearest(0.6 * width**0.8, 64),
    )


def _nearest(rank: float, multiple: int) -> int:
    return max(32, round(rank / multiple) * multiple)


def _low_rank(into: Tensor, out: Tensor) -> None:
    nn.init.zeros_(into)
    rank, width = out.shape
    orthogonal(out, 0.1 * math.sqrt(max(1.0, rank / width)))
