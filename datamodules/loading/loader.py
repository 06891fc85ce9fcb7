"""The rows of a rank, and what went wrong in them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aurora.errors import AuroraError
from aurora.files import room_for
from aurora.types import Frames, PackedBatch

from .prefetch import Prefetch
from .rows import RowTask, Skipped
from .supervisor import supervised
from .worker import WorkerLimits

_log = logging.getLogger(__name__)


@dataclass
class BadSamples:
    """Counts samples that became placeholders, lists them, and stops the run when they are too many.

    What is counted is what this process reads: a run that is resumed begins to count anew, and goes on writing to the
    same list.
    """

    max_rate: float
    after: int  # samples to be seen before the rate says anything
    path: Path | None  # jsonl, one line for each
    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def restart(self) -> None:
        """Counts and lists from zero: what follows reads the data from its beginning."""
        self.seen = 0
        self.reasons.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

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


def rank_path(path: str | None, rank: int, world: int) -> Path | None:
    """Where a rank lists its bad samples."""
    if path is None or world == 1:
        return None if path is None else Path(path)
    whole = Path(path)
    return whole.with_name(f"{whole.stem}-{rank}{whole.suffix}")


def load_rows(
    task: RowTask, *, workers: int, limits: WorkerLimits, bad: BadSamples, died: Callable[[], None],
    prefetch: bool = False,
) -> Iterator[PackedBatch]:
    """The rows of a rank; workers live as long as the iteration. `died` is called for each worker that dies or hangs.

    `prefetch` fetches the shards of the windows to come while rows are read.
    """
    pin = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    ahead = Prefetch(task) if prefetch else None
    built = supervised(task, workers, limits, died) if workers else (
        task.build(row) for row in task.planned(task.position, task.steps))
    try:
        for batch, skipped in built:
            bad.add(batch.samples + len(skipped), skipped)
            if ahead:
                ahead.reached(batch.position)
            yield pinned(batch) if pin else batch
    finally:
        if ahead:
            ahead.stop()
        if bad.reasons:
            _log.warning("data: %s%s", bad.summary(), f"; they are listed in {bad.path}" if bad.path else "")


def pinned(batch: PackedBatch) -> PackedBatch:
    """The row in page-locked memory, from which a GPU is filled while it computes."""
    frames = tuple(Frames(group.pixels.pin_memory(), group.positions.pin_memory()) for group in batch.frames)
    return batch._replace(tokens=batch.tokens.pin_memory(), targets=batch.targets.pin_memory(),
                          cu_seqlens=batch.cu_seqlens.pin_memory(), frames=frames)
