"""Rows built by worker processes, and what went wrong in them counted in the main one."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from aurora.errors import AuroraError
from aurora.types import PackedBatch

from ._plan import Plan
from ._rows import RowBuilder, Skipped
from ._schedule import Position, schedule
from .reader._clip import decoded_here

# A reader that hangs in a damaged file must not hang the whole training.
TIMEOUT_SECONDS = 900
_Item = tuple[PackedBatch, list[Skipped]] | str


@dataclass(frozen=True)
class Share:
    """What one rank does from where to where."""

    position: Position
    epochs: int
    rank: int
    world: int
    max_steps: int | None


class RowDataset(IterableDataset[_Item]):
    """The rows of a rank; worker w of W builds its micro-steps w, w + W, w + 2W, ..."""

    def __init__(self, plan: Plan, builder: RowBuilder, share: Share) -> None:
        self.plan, self.builder, self.share = plan, builder, share

    def __iter__(self) -> Iterator[_Item]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        turns = schedule(self.plan, **vars(self.share))
        try:
            for turn in islice(turns, worker, None, workers):
                batch, skipped = self.builder.row(turn.samples)
                yield batch._replace(closes_step=turn.closes_step, position=turn.position), skipped
        except AuroraError as error:
            # As text, because an exception that crosses processes arrives with a traceback for a message.
            yield str(error)


@dataclass
class BadSamples:
    """Counts samples that became placeholders, names them, and stops the run when they are too many."""

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
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for sample in skipped)
        bad = self.reasons.total()
        if self.seen >= self.after and bad > self.max_rate * self.seen:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            last = f"; the last was {skipped[-1].dataset}/{skipped[-1].key}: {skipped[-1].detail}" if skipped else ""
            raise AuroraError(f"data: {bad} of {self.seen} samples are bad ({counts}), more than max_bad_rate "
                              f"{self.max_rate}{last}")


class RowLoader:
    """Iterates over the rows of a rank. Workers live as long as the iteration, which goes through all epochs."""

    def __init__(self, dataset: RowDataset, *, workers: int, bad: BadSamples) -> None:
        self.dataset, self.workers, self.bad = dataset, workers, bad

    def __iter__(self) -> Iterator[PackedBatch]:
        loader = DataLoader(
            self.dataset, batch_size=None, collate_fn=_as_is, num_workers=self.workers, pin_memory=False,
            multiprocessing_context=start_method() if self.workers else None,
            worker_init_fn=_start_worker if self.workers else None,
            timeout=TIMEOUT_SECONDS if self.workers else 0,
        )
        for item in loader:
            if isinstance(item, str):
                raise AuroraError(item)
            batch, skipped = item
            self.bad.add(batch.samples + len(skipped), skipped)
            yield batch


def start_method() -> str:
    """How workers start: by fork where that is safe, for it is fast and shares the index.

    A process that has decoded video or started CUDA must not be forked into one that decodes.
    """
    forks = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return "fork" if forks and not decoded_here() and not cuda else "spawn"


def _as_is(item: Any) -> Any:
    # torch's own conversion would turn the position into a list.
    return item


def _start_worker(worker: int) -> None:
    # Workers decode side by side; more threads each would only fight for the cores.
    torch.set_num_threads(1)
