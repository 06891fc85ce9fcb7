"""What vision encoders do to their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from aurora.types import VisualTokens

from .._rows import take


def fresh(features: Tensor) -> VisualTokens:
    """[N, P, Dv] → tokens that stand for one patch each."""
    frames, patches, _ = features.shape
    size = torch.ones(frames, patches, device=features.device)
    owner = torch.arange(patches, device=features.device).expand(frames, -1)
    return VisualTokens(features, size, owner)


def reorder(tokens: VisualTokens, order: Tensor) -> VisualTokens:
    """The tokens read in `order` [N, M], a permutation of each frame's."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter(1, order, places)
    return VisualTokens(
        features=take(tokens.features, order),
        size=tokens.size.gather(1, order),
        owner=place.gather(1, tokens.owner),
    )
