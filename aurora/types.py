"""What flows between slots.

Shape letters: N frames, P patches per frame, M tokens kept per frame, Dv vision width, D backbone width,
T packed positions, S sequences, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""A target that carries no loss."""

State = Mapping[str, Tensor]
"""The memory of a backbone: named tensors [L, S, ...]. Given and returned, never written into; no dimension depends
on the length read."""


class VisualTokens(NamedTuple):
    """The tokens of N frames, somewhere between the patch embedding and the connector."""

    features: Tensor  # [N, M, Dv]
    size: Tensor  # [N, M] input patches each token stands for; a row sums to P
    owner: Tensor  # [N, P] int64: index of the token that each input patch went into


class Frames(NamedTuple):
    """Frames of one shape and the row positions that their tokens take."""

    pixels: Tensor  # [N, 3, h, w] uint8
    positions: Tensor  # [N, M] int64: where in the row; M is the number of tokens to keep per frame


class PackedBatch(NamedTuple):
    """One row of packed sequences: no padding, because a recurrence has no mask."""

    tokens: Tensor  # [T] int64; 0 where a visual token stands
    targets: Tensor  # [T] int64: the token that should follow, or IGNORE
    cu_seqlens: Tensor  # [S + 1] int64: where sequences start and end, from 0 to T
    frames: tuple[Frames, ...]  # one entry per frame shape
    samples: int  # real samples in this row (placeholders for broken ones do not count)
    closes_step: bool = True  # whether the optimizer steps after this row
    position: tuple[int, int, int] = (0, 0, 0)  # (epoch, window, pack) where a run that ends after this row resumes:
    # behind the step that this row closes, or else at the beginning of its unfinished step


class TokenLoss(NamedTuple):
    """A summed loss and what it sums over: means of means would weight short rows too high."""

    total: Tensor  # [] float32: sum of the cross-entropies, in nats
    count: Tensor  # type: ignore[assignment]  # [] int64: targets that were not ignored; tuples have a method count


def map_state(change: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with every tensor changed."""
    return {name: change(tensor) for name, tensor in state.items()}


def select_state(state: State, sequences: Tensor | Sequence[int]) -> State:
    """The states of some sequences, in the order asked for; repeats fork."""
    return map_state(lambda tensor: tensor[:, torch.as_tensor(sequences, device=tensor.device)], state)


def join_states(states: Sequence[State]) -> State:
    """States of several calls side by side, along the sequence dimension."""
    return {name: torch.cat([state[name] for state in states], dim=1) for name in states[0]}


def state_bytes(state: State) -> int:
    """Bytes that the state takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
