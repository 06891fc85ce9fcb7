"""What RWKV-6 and RWKV-7 share: everything around their mixes.

Shape letters: T packed positions, S sequences, D width, H heads, K head width, V vocabulary.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aurora.types import State

from ..kernels.linear import FEW, project
from ._layers import Linear, orthogonal
from ._linear_rnn import LinearRNN, Span

# 1e-5 · 8²: the authors divide what is normalised by 8, whatever the head size
GROUP_NORM_EPS = 64e-5
NARROW = 256
"""The weights of a model of so small a width lie in the cache of a core."""
FEW_OF_NARROW = 64
"""So many positions of it are given logits that do not depend on each other."""


class Block(nn.Module):
    """One layer: a time mix and a channel mix with their norms; the first also normalises what enters the model.

    What a time mix gives beside its output passes through every block, so that a block that is sharded or computed
    again in the backward pass needs nothing but its arguments.
    """

    def __init__(self, width: int, att: nn.Module, ffn: nn.Module, *, first: bool) -> None:
        super().__init__()
        if first:
            self.ln0 = nn.LayerNorm(width)
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.att = att
        self.ffn = ffn
        self.first = first

    def forward(self, x: Tensor, *carried: Any, row: Span, state: State) -> tuple[Any, ...]:
        """[T, D] → [T, D], what is carried, and the state: att_shift, ffn_shift [S, D], wkv [S, H, K, K]."""
        if self.first:
            x = self.ln0(x)
        a = self.ln1(x)
        mixed, *carried_on, wkv = self.att(a, row.shift(a, state.get("att_shift")), *carried, row=row,
                                           state=state.get("wkv"))
        x = x + mixed
        f = self.ln2(x)
        x = x + self.ffn(f, row.shift(f, state.get("ffn_shift")))
        return x, *carried_on, {} if wkv is None else {"att_shift": row.end(a), "wkv": wkv, "ffn_shift": row.end(f)}


class RWKV(LinearRNN):
    """Blocks with a time mix `att`, whose output is normalised by `ln_x`, and a channel mix `ffn`."""

    block_class = Block
    recurrence = "wkv"
    part_names = ("emb", "blocks", "ln_out")

    def __init__(self, vocab_size: int, hidden_size: int, head_size: int, mixes: Iterable[tuple[nn.Module, nn.Module]]
                 ) -> None:
        super().__init__(vocab_size, hidden_size, {
            "att_shift": (hidden_size,), "wkv": (hidden_size // head_size, head_size, head_size),
            "ffn_shift": (hidden_size,),
        })
        self.emb = nn.Embedding(vocab_size, hidden_size, _weight=torch.empty(vocab_size, hidden_size))
        self.blocks = nn.ModuleList(
            Block(hidden_size, att, ffn, first=layer == 0) for layer, (att, ffn) in enumerate(mixes)
        )
        self.ln_out = nn.LayerNorm(hidden_size)
        self.head = Linear(hidden_size, vocab_size)
        self.reset_parameters()

    def logits(self, hidden: Tensor) -> Tensor:
        return project(hidden, self.head, few=FEW_OF_NARROW if self.hidden_size <= NARROW else FEW)

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
