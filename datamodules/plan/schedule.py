"""Which rank reads which rows of every optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from aurora.types import Position

from .epoch import EpochPlan, deal
from .packing import WHOLE, SamplePart


class PlannedRow(NamedTuple):
    """One row of one rank."""

    samples: list[int]  # none: a placeholder row
    part: SamplePart  # of its one sample, where that is split over several rows
    closes_step: bool
    position: Position  # where to resume after it


def schedule(
    plan: EpochPlan, *, position: Position, steps: int, rank: int, world: int,
    parts: Callable[[int], int] = lambda sample: 1,
) -> Iterator[PlannedRow]:
    """The rows of a rank in so many steps from a position on; `parts` says over how many rows a sample is split.

    Where a step's rows do not divide evenly some ranks are given placeholders at its end, so that all ranks read the
    same number. A position inside a step means its beginning.
    """
    for packs, here, behind in islice(_steps(plan, position), steps):
        yield from _rows_of(packs, rank, world, parts, here, behind)


def _steps(plan: EpochPlan, position: Position) -> Iterator[tuple[list[list[int]], Position, Position]]:
    """The packs of every step from a position on, where it begins, and the position behind it; without end."""
    first_epoch, first_window, first_pack = position
    for epoch in count(first_epoch):
        for window in range(first_window, plan.windows):
            packs, bounds = plan.window(epoch, window)
            step = int(np.searchsorted(bounds, first_pack, side="right")) - 1
            for start, stop in zip(bounds[step:-1].tolist(), bounds[step + 1:].tolist(), strict=True):
                yield ([pack.tolist() for pack in packs[start:stop]], (epoch, window, start),
                       _behind(plan, epoch, window, stop, len(packs)))
            first_pack = 0
        first_window = 0


def _rows_of(
    packs: Sequence[list[int]], rank: int, world: int, parts: Callable[[int], int], here: Position, behind: Position
) -> Iterator[PlannedRow]:
    """A rank's rows of one step."""
    rows = [parts(pack[0]) if len(pack) == 1 else 1 for pack in packs]
    dealt = deal(rows, world)
    mine = [(packs[pack], SamplePart(number, rows[pack])) for pack in dealt[rank] for number in range(rows[pack])]
    most = max(sum(rows[pack] for pack in one) for one in dealt)
    for number in range(most):
        samples, part = mine[number] if number < len(mine) else ([], WHOLE)
        last = number == most - 1
        yield PlannedRow(samples, part, last, behind if last else here)


def _behind(plan: EpochPlan, epoch: int, window: int, pack: int, packs: int) -> Position:
    """The position of the first pack after some."""
    if pack < packs:
        return epoch, window, pack
    return (epoch, window + 1, 0) if window + 1 < plan.windows else (epoch + 1, 0, 0)
