"""Short causal convolutions over packed rows; what they look back at is a state.

Shape letters: T packed positions, S sequences, E channels, W positions that a convolution sees.

A window is a list of W tensors [T, E]: what stood 0, 1, … W - 1 positions before each one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._linear_rnn import Row


def row_window(x: Tensor, row: Row, before: Tensor | None, size: int) -> list[Tensor]:
    """The window of a packed row x [T, E] that follows `before` [S, W - 1, E], the latest last, or zeros."""
    seen = [x]
    for back in range(1, size):
        seen.append(row.shift(seen[-1], None if before is None else before[:, -back]))
    return seen


def step_window(x: Tensor, before: Tensor) -> list[Tensor]:
    """The window of one position x [S, E] of every sequence."""
    return [x, *before.to(x.dtype).flip(1).unbind(1)]


def convolve(window: list[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every channel by itself: weight [E, 1, W] as in Conv1d with one group per channel, bias [E] → [T, E]."""
    nearest, *others = weight[:, 0].flip(-1).unbind(-1)
    total = window[0] * nearest if bias is None else torch.addcmul(bias, window[0], nearest)
    for tap, x in zip(others, window[1:], strict=True):
        total = torch.addcmul(total, x, tap)
    return total


def latest(window: list[Tensor]) -> Tensor:
    """[S, W - 1, E], the state after the positions of a window: the oldest drops out."""
    return torch.stack(window[-2::-1], dim=1)
