"""How RWKV-6 is filled before training, after the appendix of arXiv 2404.05892 and the authors' trainer.

Layers and channels start out different from each other: early channels look at the position before and forget fast,
late ones remember; what ends a residual branch starts at zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ._layers import orthogonal


@torch.no_grad()
def initialise(model: Any) -> None:
    """Fills every parameter of an RWKV6."""
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
        nn.init.constant_(block.att.ln_x.weight, ((1 + layer) / layers) ** 0.7)
        _channel_mix(block.ffn, height)


def _time_mix(att: Any, depth: float, height: float) -> None:
    width = att.time_maa_x.shape[-1]
    channel = torch.arange(width, device=att.time_maa_x.device)
    share = channel / width
    for maa in (att.time_maa_x, att.time_maa_w, att.time_maa_k):
        maa.copy_(1 - share**height)
    att.time_maa_v.copy_(1 - (share**height + 0.3 * depth))
    for maa in (att.time_maa_r, att.time_maa_g):
        maa.copy_(1 - share ** (0.5 * height))
    nn.init.uniform_(att.time_maa_w1, -1e-4, 1e-4)
    nn.init.uniform_(att.time_maa_w2, -1e-2, 1e-2)

    along = channel / max(1, width - 1)
    att.time_decay.copy_(-6 + 5 * along ** (0.7 + 1.3 * depth))
    nn.init.uniform_(att.time_decay_w1, -1e-4, 1e-4)
    nn.init.uniform_(att.time_decay_w2, -1e-2, 1e-2)
    zigzag = 0.1 * ((channel + 1) % 3 - 1)
    att.time_faaaa.copy_((depth * (1 - along) + zigzag).view_as(att.time_faaaa))

    orthogonal(att.receptance.weight, 1.0)
    orthogonal(att.key.weight, 0.1)
    orthogonal(att.value.weight, 1.0)
    orthogonal(att.gate.weight, 0.1)
    nn.init.zeros_(att.output.weight)
    nn.init.zeros_(att.ln_x.bias)


def _channel_mix(ffn: Any, height: float) -> None:
    width = ffn.time_maa_k.shape[-1]
    share = torch.arange(width, device=ffn.time_maa_k.device) / width
    for maa in (ffn.time_maa_k, ffn.time_maa_r):
        maa.copy_(1 - share**height)
    orthogonal(ffn.key.weight, 1.0)
    nn.init.zeros_(ffn.receptance.weight)
    nn.init.zeros_(ffn.value.weight)
