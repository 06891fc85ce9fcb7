import ctypes
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing.util import Finalize

import numpy as np

from aurora.errors import AuroraError, BadSample
from aurora.types import Position

from ..plan.corpus import Corpus
from ..plan.epoch import EpochPlan
from ..shards.index import DatasetIndex
from .rows import RowTask
from .worker import settle

LOOK_SECONDS = 0.5
AHEAD = 1  # windows
_log = logging.getLogger(__name__)


class Prefetch:
    """Fetches this rank's share of the shards of the current window and the next. If it fails, rows stay the same:
    whoever needs a shard fetches it."""

    def __init__(self, task: RowTask) -> None:
        # never forked: what fetches has threads of its own, and so may have this process
        context = multiprocessing.get_context("spawn")
        self._plan = task.plan
        self._window = context.RawValue(ctypes.c_long, _number(task.plan, task.position))
        self._process = context.Process(target=_run, args=(task, self._window, os.getpid()), daemon=True)
        self._process.start()
        self._kill = Finalize(None, self._process.kill, exitpriority=10)

    def reached(self, position: Position) -> None:
        """Says how far rows have been taken."""
        self._window.value = _number(self._plan, position)

    def stop(self) -> None:
        """Ends the process."""
        self._kill()
        self._process.join()
        self._process.close()


def window_shards(corpus: Corpus, plan: EpochPlan, epoch: int, window: int) -> list[tuple[DatasetIndex, int]]:
    """The shards of a window's samples in the order in which they are first needed."""
    samples = np.concatenate(plan.window(epoch, window).packs)
    owners = np.searchsorted(corpus.starts, samples, side="right") - 1
    shards = np.zeros(len(samples), np.int64)
    for number, index in enumerate(corpus.datasets):
        mine = owners == number
        shards[mine] = index.samples["shard"][samples[mine] - int(corpus.starts[number])]
    pairs = dict.fromkeys(zip(owners.tolist(), shards.tolist(), strict=True))
    return [(corpus.datasets[number], shard) for number, shard in pairs]


def _run(task: RowTask, reached: ctypes.c_long, parent: int) -> None:
    from ..shards.remote import fetch_shard  # the packages behind it are slow to import, and not needed elsewhere

    settle(parent, ())
    plan = task.plan
    for epoch, window in windows(plan, task.position, task.steps):
        while epoch * plan.windows + window > reached.value + AHEAD:
            time.sleep(LOOK_SECONDS)
        for index, shard in window_shards(task.builder.corpus, plan, epoch, window)[task.rank::task.world]:
            try:
                fetch_shard(index.folder, index.shards[shard])
            except (BadSample, AuroraError) as error:
                _log.warning("data: not fetched ahead: %s", error)


def windows(plan: EpochPlan, position: Position, steps: int) -> Iterator[tuple[int, int]]:
    """Epoch and window of all that so many steps from a position on read."""
    epoch, window, pack = position
    here = int(np.searchsorted(plan.window(epoch, window).steps, pack, side="right")) - 1
    end = plan.steps_before(epoch, window) + here + steps
    for number in count(_number(plan, position)):
        epoch, window = divmod(number, plan.windows)
        if plan.steps_before(epoch, window) >= end:
            return
        yield epoch, window


def _number(plan: EpochPlan, position: Position) -> int:
    return position[0] * plan.windows + position[1]
