"""The rows of a rank, and what went wrong in them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aurora.errors import AuroraError
from aurora.types import Frames, PackedBatch

from ..plan.corpus import Corpus
from ..plan.epoch import Plan
from .rows import RowBuilder, Skipped
from ..shards.format import BadSample
from ..plan.schedule import Position, Turn, schedule
from .worker import Built, Care
from .supervisor import supervised
from aurora.files import room_for

if TYPE_CHECKING:
    from .prefetch import Prefetch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What one rank does from where to where."""

    position: Position
    epochs: int
    rank: int
    world: int
    max_steps: int | None


@dataclass(frozen=True)
class RowTask:
    """The rows of a rank, one by one."""

    builder: RowBuilder
    share: Share
    plan_of: Callable[[Corpus], Plan]

    @cached_property
    def plan(self) -> Plan:
        """The order of the rows."""
        return self.plan_of(self.builder.corpus)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process maps the corpus and plans anew, or it would carry the lengths of all samples.
        return {name: value for name, value in vars(self).items() if name != "plan"}

    def turns(self, position: Position) -> Iterator[Turn]:
        """The micro-steps of this rank from a position on."""
        return schedule(self.plan, **{**vars(self.share), "position": position}, parts=self.builder.parts)

    def build(self, turn: Turn, given_up: Mapping[int, BadSample], note: Callable[[int], None]) -> Built:
        """The row of a micro-step, without the samples at the places in `given_up`."""
        batch, skipped = self.builder.row(turn.samples, turn.part, given_up, note)
        return batch._replace(closes_step=turn.closes_step, position=turn.position), skipped


@dataclass
class BadSamples:
    """Counts samples that became placeholders, names them, and stops the run when they are too many.

    What is counted is what this process reads: a run that is resumed begins to count anew, and goes on writing to the
    same list.
    """

    max_rate: float
    after: int  # samples to be seen before the rate says anything
    path: Path | None  # jsonl, one line for each
    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, samples: int, skipped: list[Skipped]) -> None:
        """Counts a row of so many samples, skipped ones included."""
        self.seen += samples
        self.reasons.update(sample.reason for sample in skipped)
        if skipped and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with room_for(self.path), self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for sample in skipped)
        if self.seen >= self.after and self.reasons.total() > self.max_rate * self.seen:
            last = f"; the last was {skipped[-1].dataset}/{skipped[-1].key}: {skipped[-1].detail}" if skipped else ""
            raise AuroraError(f"data: {self.summary()}, more than max_bad_rate {self.max_rate}{last}")

    def summary(self) -> str:
        """How many are bad, and of what."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.reasons.total()} of {self.seen} samples are bad" + (f" ({counts})" if counts else "")


class RowLoader:
    """Iterates over the rows of a rank. Workers live as long as the iteration, which goes through all epochs."""

    def __init__(self, task: RowTask, *, workers: int, care: Care, bad: BadSamples, prefetch: bool = False) -> None:
        """`prefetch` fetches the shards of the windows to come while rows are read."""
        self.task, self.workers, self.care, self.bad, self.prefetch = task, workers, care, bad, prefetch
        self.deaths = 0  # of workers, by themselves or because they hung

    def __iter__(self) -> Iterator[PackedBatch]:
        pin = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        ahead = self._prefetch() if self.prefetch else None
        try:
            for batch, skipped in self._built():
                self.bad.add(batch.samples + len(skipped), skipped)
                if ahead:
                    ahead.reached(batch.position)
                yield pinned(batch) if pin else batch
        finally:
            if ahead:
                ahead.stop()
            if self.bad.reasons:
                _log.warning("data: %s%s", self.bad.summary(),
                             f"; they are listed in {self.bad.path}" if self.bad.path else "")

    def _prefetch(self) -> Prefetch:
        from .prefetch import Prefetch  # the packages behind it are not needed for local shards

        return Prefetch(self.task)

    def _built(self) -> Iterator[Built]:
        position = self.task.share.position
        if self.workers:
            return supervised(self.task, position, self.workers, self.care, self._died)
        return (self.task.build(turn, {}, _nobody_watches) for turn in self.task.turns(position))

    def _died(self) -> None:
        self.deaths += 1


def pinned(batch: PackedBatch) -> PackedBatch:
    """The row in page-locked memory, from which a GPU is filled while it computes."""
    frames = tuple(Frames(group.pixels.pin_memory(), group.positions.pin_memory()) for group in batch.frames)
    return batch._replace(tokens=batch.tokens.pin_memory(), targets=batch.targets.pin_memory(),
                          cu_seqlens=batch.cu_seqlens.pin_memory(), frames=frames)


def _nobody_watches(place: int) -> None:
    """What this process builds itself is not built again."""
