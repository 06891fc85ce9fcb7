"""Gated DeltaNet, arXiv 2412.06464; parameters are named as in flash-linear-attention.

Shape letters: T packed positions, S sequences, D width, H heads, K key width, V value width of a head, W positions that
a convolution sees, E = H (2 K + V) convolved channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.options import PositiveInt
from aurora.registry import BACKBONE
from aurora.types import State

from ..kernels.gated_delta import gated_delta, gated_delta_step
from ._decoder import NORM_EPS, Decoder, expanded
from ._layers import GatedNorm, Linear, check_heads, fill_steps, parameter
from ._linear_rnn import ConvSize, Span, convolve, latest

LENGTH_EPS = 1e-6


class GatedDeltaRule(nn.Module):
    """Short convolutions, then a memory that forgets, and replaces what it holds for a key by a new value."""

    def __init__(self, width: int, heads: int, head_size: int, value_size: int, conv_size: int) -> None:
        super().__init__()
        keys, values = heads * head_size, heads * value_size
        self.heads = heads
        self.conv_size = conv_size
        self.widths = [keys, keys, values]
        self.scale = head_size**-0.5
        self.q_proj = Linear(width, keys)
        self.k_proj = Linear(width, keys)
        self.v_proj = Linear(width, values)
        self.a_proj = Linear(width, heads)
        self.b_proj = Linear(width, heads)
        self.g_proj = Linear(width, values)
        self.q_conv1d = nn.Conv1d(keys, keys, conv_size, groups=keys, bias=False)
        self.k_conv1d = nn.Conv1d(keys, keys, conv_size, groups=keys, bias=False)
        self.v_conv1d = nn.Conv1d(values, values, conv_size, groups=values, bias=False)
        self.A_log = parameter(heads)
        self.dt_bias = parameter(heads)
        self.o_norm = GatedNorm(value_size, eps=NORM_EPS)
        self.o_proj = Linear(values, width)

    @torch.no_grad()
    def initialise(self) -> None:
        """As in Mamba-2: rates up to 16, steps of 0.001 to 0.1, evenly in their logarithm."""
        self.A_log.uniform_(0.01, 16).log_()
        fill_steps(self.dt_bias)

    def forward(self, x: Tensor, row: Span, state: State) -> tuple[Tensor, State]:
        """[T, D] → [T, D] and the next state: conv [S, W - 1, E], the latest input last, kv [S, H, K, V]."""
        inputs = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)  # [T, E]
        seen = row.window(inputs, state.get("conv"), self.conv_size)
        taps = torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight])
        convolved = torch.split(F.silu(convolve(seen, taps)), self.widths, dim=-1)
        q, k, v = (part.reshape(len(x), self.heads, -1) for part in convolved)
        y, kv = row.recur(gated_delta, gated_delta_step, _unit(q) * self.scale, _unit(k), v, self._log_decay(x),
                          torch.sigmoid(self.b_proj(x)), state=state.get("kv"))
        gate = self.g_proj(x).reshape(len(x), self.heads, -1)
        out = self.o_proj(self.o_norm(y, gate).flatten(-2))
        return out, {} if kv is None else {"conv": latest(seen, row), "kv": kv}

    def _log_decay(self, x: Tensor) -> Tensor:
        """[T, H], wide: decays next to one would lose all in bfloat16."""
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(self.a_proj(x).to(wide) + self.dt_bias.to(wide))
        return -self.A_log.to(wide).exp() * step


def _unit(x: Tensor) -> Tensor:
    """[T, H, K] of length one, in its dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + LENGTH_EPS)).to(x.dtype)


@BACKBONE.register
class GatedDeltaNet(Decoder):
    """Gated DeltaNet, a linear RNN that overwrites what it holds for a key; defaults are those of the 1.3B model."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: PositiveInt = 2048,
        layers: PositiveInt = 21,
        head_size: PositiveInt = 256,
        heads: PositiveInt | None = None,
        expand_v: float = 2.0,
        ffn_size: PositiveInt | None = None,
        conv_size: ConvSize = 4,
    ) -> None:
        if heads is None:
            check_heads("gated_deltanet", hidden_size, head_size)
            heads = math.ceil(0.75 * hidden_size / head_size)
        values = expanded("gated_deltanet", "expand_v", expand_v, head_size)
        mixers = [GatedDeltaRule(hidden_size, heads, head_size, values, conv_size) for _ in range(layers)]
        shapes = {"conv": (conv_size - 1, heads * (2 * head_size + values)), "kv": (heads, head_size, values)}
        super().__init__(vocab_size, hidden_size, ffn_size, mixers, shapes)
