"""Who builds which row: ranks take turns at the rows of a step, and workers at the micro-steps of a rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import torch.distributed

from aurora.errors import AuroraError

from .epoch import Plan
from .packing import WHOLE, Part

Position = tuple[int, int, int]


class Turn(NamedTuple):
    """One micro-step of one rank."""

    samples: list[int]  # none: a placeholder row
    part: Part  # of its one sample, where that is laid over several rows
    closes_step: bool
    position: Position  # where to resume after it


def schedule(
    plan: Plan, *, position: Position, epochs: int, rank: int, world: int, max_steps: int | None = None,
    parts: Callable[[int], int] = lambda sample: 1,
) -> Iterator[Turn]:
    """The micro-steps of a rank from a position on; `parts` says over how many rows a sample is laid.

    Where a step's rows do not divide evenly some ranks are given placeholders at its end, so that all ranks make the
    same micro-steps. A position inside a step means its beginning.
    """
    _, first_window, first_pack = position
    for epoch in range(position[0], epochs):
        for window in range(first_window, plan.windows):
            packs, bounds = plan.window(epoch, window)
            step = int(np.searchsorted(bounds, first_pack, side="right")) - 1
            done = plan.steps_before(epoch, window)
            for number in range(step, len(bounds) - 1):
                if max_steps is not None and done + number >= max_steps:
                    return
                start, stop = int(bounds[number]), int(bounds[number + 1])
                here, behind = (epoch, window, start), _behind(plan, epoch, window, stop, len(packs))
                yield from _turns([pack.tolist() for pack in packs[start:stop]], rank, world, parts, here, behind)
            first_pack = 0
        first_window = 0


def deal(rows: Sequence[int], world: int) -> list[list[int]]:
    """Which packs each rank is given, of `rows` rows each: one after the other to the rank that has the fewest rows.

    Where every pack is one row, ranks simply take turns. Packs begin in their order, whatever the number of ranks.
    """
    dealt: list[list[int]] = [[] for _ in range(world)]
    least = [(0, rank) for rank in range(world)]
    for pack, size in enumerate(rows):
        taken, rank = heappop(least)
        dealt[rank].append(pack)
        heappush(least, (taken + size, rank))
    return dealt


def _turns(
    packs: Sequence[list[int]], rank: int, world: int, parts: Callable[[int], int], here: Position, behind: Position
) -> Iterator[Turn]:
    """A rank's micro-steps of one step."""
    rows = [parts(pack[0]) if len(pack) == 1 else 1 for pack in packs]
    dealt = deal(rows, world)
    mine = [(packs[pack], Part(number, rows[pack])) for pack in dealt[rank] for number in range(rows[pack])]
    most = max(sum(rows[pack] for pack in one) for one in dealt)
    for number in range(most):
        samples, part = mine[number] if number < len(mine) else ([], WHOLE)
        last = number == most - 1
        yield Turn(samples, part, last, behind if last else here)


def _behind(plan: Plan, epoch: int, window: int, pack: int, packs: int) -> Position:
    """The position of the first pack after some."""
    if pack < packs:
        return epoch, window, pack
    return (epoch, window + 1, 0) if window + 1 < plan.windows else (epoch + 1, 0, 0)


def check_position(position: object) -> Position:
    """Three integers from 0, or AuroraError."""
    if (not isinstance(position, list | tuple) or len(position) != 3
            or not all(isinstance(number, int) and number >= 0 for number in position)):
        raise AuroraError(f"data: position {position!r} is not (epoch, window, pack), three integers from 0")
    return position[0], position[1], position[2]


def rank_and_world(trainer: object | None) -> tuple[int, int]:
    """This process's rank and the number of ranks: the trainer's, else torch.distributed's, else the launcher's."""
    if trainer is not None:
        # ranks that read one row together count as one
        told = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}  # type: ignore[attr-defined]
        return int(told["rank"]), int(told["num_replicas"])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
