"""Gated linear attention, arXiv 2312.06635; parameters are named as in flash-linear-attention.

Shape letters: T packed positions, S sequences, D width, H heads, K key width, V value width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.options import PositiveInt
from aurora.registry import BACKBONE
from aurora.types import State

from ..kernels.gla import gla, gla_step
from ._decoder import NORM_EPS, Decoder, expanded
from ._layers import GatedNorm, Linear, check_heads, with_range
from ._linear_rnn import Span

# arXiv 2312.06635, section 4.4: the root of a sigmoid, so that decays start near one
DECAY_ROOT = 16


class GatedLinearAttention(nn.Module):
    """Linear attention whose memory of each key decays by what is read."""

    def __init__(self, width: int, key_width: int, heads: int, gate_rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (key_width // heads) ** -0.5
        self.q_proj = Linear(width, key_width)
        self.k_proj = Linear(width, key_width)
        self.v_proj = Linear(width, width)
        self.g_proj = Linear(width, width)
        self.gk_proj = nn.Sequential(Linear(width, gate_rank), nn.Linear(gate_rank, key_width))
        self.g_norm_swish_gate = GatedNorm(width // heads, eps=NORM_EPS)
        self.o_proj = Linear(width, width)

    @torch.no_grad()
    def initialise(self) -> None:
        nn.init.zeros_(self.gk_proj[1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, row: Span, state: State) -> tuple[Tensor, State]:
        """[T, D] → [T, D] and the next state: kv [S, H, K, V]."""
        read = (with_range(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v, decay, gate = (
            part.view(len(x), self.heads, -1) for part in (*read, self._log_decay(x), self.g_proj(x))
        )
        y, kv = row.recur(gla, gla_step, q * self.scale, k, v, decay, state=state.get("kv"))
        out = self.o_proj(self.g_norm_swish_gate(y, gate).flatten(-2))
        return out, {} if kv is None else {"kv": kv}

    def _log_decay(self, x: Tensor) -> Tensor:
        """[T, H · K], wide: decays next to one would lose all in bfloat16."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.logsigmoid(self.gk_proj(x).to(wide)) / DECAY_ROOT


@BACKBONE.register
class GLA(Decoder):
    """Gated linear attention, a linear RNN with one decay per key; defaults are those of the 1.3B model."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: PositiveInt = 2048,
        layers: PositiveInt = 24,
        head_size: PositiveInt = 512,
        expand_k: float = 0.5,
        ffn_size: PositiveInt | None = None,
        gate_rank: PositiveInt = 16,
    ) -> None:
        check_heads("gla", hidden_size, head_size)
        keys = expanded("gla", "expand_k", expand_k, head_size)
        heads = hidden_size // head_size
        mixers = [GatedLinearAttention(hidden_size, heads * keys, heads, gate_rank) for _ in range(layers)]
        super().__init__(vocab_size, hidden_size, ffn_size, mixers, {"kv": (heads, keys, head_size)})
