"""What RWKV-6 and RWKV-7 share: everything around their blocks.

Shape letters: S sequences, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.linear import project
from ._layers import Linear, orthogonal
from ._linear_rnn import LinearRNN, Parts

# 1e-5 · 8²: the authors divide what is normalised by 8, whatever the head size
GROUP_NORM_EPS = 64e-5


class LayerState(NamedTuple):
    """What one layer remembers."""

    att_shift: Tensor  # [S, D]
    wkv: Tensor  # [S, H, K, K]: key, value
    ffn_shift: Tensor  # [S, D]


class RWKVBlock(nn.Module):
    """The norms of one layer around its mixes; the first one also normalises what enters the model."""

    def __init__(self, width: int, att: nn.Module, ffn: nn.Module, *, first: bool) -> None:
        super().__init__()
        if first:
            self.ln0 = nn.LayerNorm(width)
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.att = att
        self.ffn = ffn
        self.first = first

    def enter(self, x: Tensor) -> Tensor:
        """[T, D] → [T, D]: what the layer reads."""
        return self.ln0(x) if self.first else x


class RWKV(LinearRNN):
    """Blocks with a time mix `att`, whose output is normalised by `ln_x`, and a channel mix `ffn`."""

    layer_state = LayerState
    recurrence = "wkv"

    def __init__(self, vocab_size: int, hidden_size: int, head_size: int, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.state_shapes = {"att_shift": (hidden_size,), "wkv": (hidden_size // head_size, head_size, head_size),
                             "ffn_shift": (hidden_size,)}
        self.emb = nn.Embedding(vocab_size, hidden_size, _weight=torch.empty(vocab_size, hidden_size))
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(hidden_size)
        self.head = Linear(hidden_size, vocab_size)
        self.reset_parameters()

    @property
    def parts(self) -> Parts:
        return Parts(self.emb, self.blocks, self.ln_out)

    def logits(self, hidden: Tensor) -> Tensor:
        return project(hidden, self.head)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fills every parameter as the authors do before training.

        Layers and channels start out different from each other; what ends a residual branch starts at zero.
        """
        if self.emb.weight.is_meta:
            return
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        orthogonal(self.head.weight, 0.5 * math.sqrt(max(1.0, self.vocab_size / self.hidden_size)))
        self.ln_out.reset_parameters()
        layers = len(self.blocks)
        for layer in range(layers):
            block: Any = self.blocks[layer]
            # how deep the layer stands: from 0 to 1, and from 1 to almost 0
            depth, height = layer / max(1, layers - 1), 1 - layer / layers
            for name, norm in block.named_children():
                if name.startswith("ln"):
                    norm.reset_parameters()
            block.att.initialise(depth, height)
            nn.init.zeros_(block.att.ln_x.bias)
            nn.init.constant_(block.att.ln_x.weight, ((1 + layer) / layers) ** 0.7)
            block.ffn.initialise(height)
