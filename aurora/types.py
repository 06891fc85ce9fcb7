"""What flows between slots.

Shape letters: N frames, P patches per frame, M tokens kept per frame, Dv vision width, D backbone width,
T packed positions, S sequences, L layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""A target that carries no loss."""

State = Mapping[str, Tensor]
"""The memory of a backbone: named tensors [L, S, ...]. Given and returned, never written into; no dimension depends
on the length read. A transformer kept as a baseline is the exception: its keys and values are [L, S, C, ...], where C
is the longest sequence's length, and a tensor of its own says the length of each."""

Position = tuple[int, int, int]
"""(epoch, window, pack): where in the order of training a run resumes."""


class VisualTokens(NamedTuple):
    """The tokens of N frames, somewhere between the patch embedding and the connector."""

    features: Tensor  # [N, M, Dv]
    size: Tensor  # [N, M] input patches each token stands for; a row sums to P
    owner: Tensor  # [N, P] int64: index of the token that each input patch went into


class Frames(NamedTuple):
    """Frames of one shape and the row positions that their tokens take."""

    pixels: Tensor  # [N, 3, h, w] uint8
    positions: Tensor  # [N, M] int64: where in the row; M is the number of tokens to keep per frame
    timestamp: int = 0  # positions of text in front of each frame that a row is never cut from


class PackedBatch(NamedTuple):
    """One row of packed sequences: no padding, because a recurrence has no mask.

    A sequence longer than a row is laid over several that this rank reads one after the other within a step. It is
    alone in them, or the first, and its memory is handed on; gradients end where a row ends.
    """

    tokens: Tensor  # [T] int64; 0 where a visual token stands
    targets: Tensor  # [T] int64: the token that should follow, or IGNORE
    cu_seqlens: Tensor  # [S + 1] int64: where sequences start and end, from 0 to T
    frames: tuple[Frames, ...]  # one entry per frame shape
    samples: int  # real samples in this row (placeholders for broken ones do not count)
    closes_step: bool = True  # whether the optimizer steps after this row
    position: Position = (0, 0, 0)  # where a run that ends after this row resumes: behind the step that this row
    # closes, or else at the beginning of its unfinished step
    continues: bool = False  # the first sequence goes on where that of the row before ended
    unfinished: bool = False  # one of the sequences is not at its end
    open_sequence: int = 0  # which one that is
    return_states: bool = False  # at the end of each sequence, to be measured


class TokenLoss(NamedTuple):
    """A summed loss and what it sums over: means of means would weight short rows too high."""

    total: Tensor  # [] float32: sum of the cross-entropies, in nats
    count: Tensor  # type: ignore[assignment]  # [] int64: targets that were not ignored; tuples have a method count
    memory: State | None = None  # of the sequence that goes on in the next row or piece: [L, 1, ...], without gradients
    states: State | None = None  # of all sequences at their ends, where the row asked for them: [L, S, ...]


def map_state(change: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with every tensor changed."""
    return {name: change(tensor) for name, tensor in state.items()}


def select_state(state: State, sequences: Tensor | Sequence[int]) -> State:
    """The states of some sequences, in the order asked for; repeats fork."""
    return map_state(lambda tensor: tensor[:, torch.as_tensor(sequences, device=tensor.device)], state)


def join_states(states: Sequence[State]) -> State:
    """States of several calls side by side, along the sequence dimension; memory that grows is filled up with zeros."""
    return {name: torch.cat(_as_long([state[name] for state in states]), dim=1) for name in states[0]}


def state_bytes(state: State) -> int:
    """Bytes that the state takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _as_long(tensors: Sequence[Tensor]) -> list[Tensor]:
    """[L, S, C, ...] each, with zeros behind the shorter ones up to the longest C."""
    longest = max(tensor.shape[2] if tensor.dim() > 2 else 0 for tensor in tensors)
    return [
        torch.cat([tensor, tensor.new_zeros(*tensor.shape[:2], longest - tensor.shape[2], *tensor.shape[3:])], dim=2)
        if tensor.dim() > 2 and tensor.shape[2] < longest else tensor
        for tensor in tensors
    ]
