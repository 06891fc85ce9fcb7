"""Packed rows for models that read batches: which sequences are read together, and how they get back into the row.

Shape letters: T packed positions, S sequences, B sequences of one batch of n positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora.types import State, join_states, select_state

from ._hf_memory import Memory

# a batch is padded at its end to its longest sequence; the shortest is at least this share of it
LEAST_SHARE = 0.5


class Batch(NamedTuple):
    """Sequences that are read side by side."""

    sequences: list[int]
    length: int  # of the longest


def batches(lengths: Sequence[int], *, equal: bool) -> list[Batch]:
    """Sequences sorted into batches: of equal lengths, or of lengths near enough to pad."""
    found: list[Batch] = []
    for s in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
        least = found[-1].length if found and equal else LEAST_SHARE * found[-1].length if found else 0
        if found and lengths[s] >= least:
            found[-1].sequences.append(s)
        else:
            found.append(Batch([s], lengths[s]))
    return found


def read_batches(memory: Memory, x: Tensor, lengths: Sequence[int], state: State | None, keep: bool
                 ) -> tuple[Tensor, State | None]:
    """[T, D] → [T, D] and the states [S] when `keep`. What is padded stands after a sequence, where nothing of it
    looks; but a state would have read it, so states are kept of batches of equal lengths only."""
    parts = list(torch.split(x, list(lengths)))
    order: list[int] = []
    states = []
    for batch in batches(lengths, equal=keep):
        rows = torch.stack([F.pad(parts[s], (0, 0, 0, batch.length - lengths[s])) for s in batch.sequences])
        given = None if state is None else select_state(state, batch.sequences)
        hidden, after = memory.read(rows, given, keep)
        for row, s in enumerate(batch.sequences):
            parts[s] = hidden[row, : lengths[s]]
        order += batch.sequences
        states.append(after)
    whole = torch.cat(parts)
    kept = [after for after in states if after is not None]
    return whole, select_state(join_states(kept), _inverse(order)) if kept else None


def read_steps(memory: Memory, x: Tensor, lengths: Sequence[int], state: State) -> tuple[Tensor, State]:
    """[T, D] → [T, D] and the states [S], one position of all sequences at a time; those that end drop out."""
    order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    starts = torch.tensor([0, *lengths], device=x.device).cumsum(0)[order]
    state, ended, steps, places = select_state(state, order), [], [], []
    reading = len(order)
    for t in range(lengths[order[0]]):
        going = sum(lengths[s] > t for s in order[:reading])
        if going < reading:
            ended.append(select_state(state, range(going, reading)))
            state, reading = select_state(state, range(going)), going
        places.append(starts[:going] + t)
        hidden, after = memory.read(x[places[-1]].unsqueeze(1), state, True)
        assert after is not None
        steps.append(hidden[:, 0])
        state = after
    row = torch.cat(steps)
    return torch.empty_like(row).index_copy(0, torch.cat(places), row), select_state(
        join_states([state, *reversed(ended)]), _inverse(order))


def _inverse(order: Sequence[int]) -> list[int]:
    """Where each sequence stands in the order."""
    return sorted(range(len(order)), key=order.__getitem__)
