"""Picking tokens of each frame. Shape letters: N frames, M and G tokens, C any width.

Frames are laid end to end, so that whole rows are copied: with `gather`, the index of every single number is looked up.
"""

import torch
from torch import Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """[N, M, C], [N, G] → [N, G, C]: the tokens at `index`."""
    return x.flatten(0, 1).index_select(0, _flat(index, x.shape[1])).view(*index.shape, x.shape[2])


def add_to(x: Tensor, index: Tensor, more: Tensor) -> Tensor:
    """[N, M, C], [N, G], [N, G, C] → [N, M, C]: `x` with each token of `more` added to the one at `index`."""
    return x.flatten(0, 1).index_add(0, _flat(index, x.shape[1]), more.flatten(0, 1)).view_as(x)


def _flat(index: Tensor, length: int) -> Tensor:
    first = torch.arange(0, index.shape[0] * length, length, device=index.device)
    return (index + first[:, None]).flatten()
