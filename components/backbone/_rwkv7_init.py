"""How RWKV-7 is filled before training, after arXiv 2503.14456 and the authors' trainer.

Layers and channels start out different from each other, as in RWKV-6. Low-rank projections start silent, so that what
they steer begins at its constant; what ends a residual branch starts at zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ._layers import orthogonal


@torch.no_grad()
def initialise(model: Any) -> None:
    """Fills every parameter of an RWKV7."""
    if model.emb.weight.is_meta:
        return
    nn.init.uniform_(model.emb.weight, -1e-4, 1e-4)
    vocab, width = model.head.weight.shape
    orthogonal(model.head.weight, 0.5 * math.sqrt(max(1.0, vocab / width)))
    model.ln_out.reset_parameters()
    layers = len(model.blocks)
    for layer, block in enumerate(model.blocks):
        # how deep the layer stands: from 0 to 1, and from 1 to almost 0
        depth, height = layer / max(1, layers - 1), 1 - layer / layers
        for name, norm in block.named_children():
            if name.startswith("ln"):
                norm.reset_parameters()
        _time_mix(block.att, depth, height)
        nn.init.zeros_(block.att.ln_x.bias)
        nn.init.constant_(block.att.ln_x.weight, ((1 + layer) / layers) ** 0.7)
        _channel_mix(block.ffn, height)


def _time_mix(att: Any, depth: float, height: float) -> None:
    width, head = att.x_r.shape[-1], att.r_k.shape[-1]
    channel = torch.arange(width, device=att.x_r.device)
    share = channel / width
    for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
        getattr(att, f"x_{name}").copy_(1 - share ** (power * height))

    along = channel / max(1, width - 1)
    within = 2 * (channel % head) / max(1, head - 1) - 1  # from -1 to 1 in each head
    zigzag = within * within.abs()
    att.w0.copy_(-5.5 + 6 * along ** (1 + depth**0.3) + 2.5 * zigzag)
    att.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5))
    att.k_k.copy_(0.71 - 0.1 * (along - 0.5))
    nn.init.constant_(att.k_a, 1.02)
    nn.init.constant_(att.r_k, -0.04)
    if not att.first:
        att.v0.copy_(0.73 - 0.4 * (along - 0.5))
        _low_rank(att.v1, att.v2)
    for into, out in ((att.w1, att.w2), (att.a1, att.a2), (att.g1, att.g2)):
        _low_rank(into, out)

    orthogonal(att.receptance.weight, 1.0)
    orthogonal(att.key.weight, 0.1)
    orthogonal(att.value.weight, 1.0)
    nn.init.zeros_(att.output.weight)


def _channel_mix(ffn: Any, height: float) -> None:
    width = ffn.x_k.shape[-1]
    share = torch.arange(width, device=ffn.x_k.device) / width
    ffn.x_k.copy_(1 - share ** (height**4))
    orthogonal(ffn.key.weight, 1.0)
    nn.init.zeros_(ffn.value.weight)


def _low_rank(into: Tensor, out: Tensor) -> None:
    nn.init.zeros_(into)
    rank, width = out.shape
    orthogonal(out, 0.1 * math.sqrt(max(1.0, rank / width)))
