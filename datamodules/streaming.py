"""Plain webdataset: rows from tars that have no index, packed as samples come by."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from aurora.registry import DATA
from aurora.types import PackedBatch

from ._endless import Endless
from .loading.loader import BadSamples
from .loading.rows import Segment, Skipped
from .shards.format import BadSample
from ._segments import Segments
from .loading.worker import Built
from .loading.supervisor import start_method

# Sequences that wait for a row that they fit in.
_WAITING = 64
_log = logging.getLogger(__name__)


@cache
def _tell(rows_per_step: int) -> None:
    """Once, and not for every validation."""
    _log.warning("data 'streaming': order and repeats depend on ranks and workers, samples are drawn with replacement, "
                 "a resumed run draws anew, and a step is %d rows whatever the stage's global_batch", rows_per_step)


@DATA.register
class StreamingModule(Endless):
    """Tars of the folders of a mixture below `root`, read by webdataset and packed on the fly.

    For tars without an index. Every worker draws shards for ever, so that all ranks make the same steps of
    `rows_per_step` rows and none waits for another. What this cannot promise, and `webdataset` does: that each sample
    is read once per epoch, the same order on another number of ranks or workers, going on where a run stopped.
    Samples longer than a row count as bad.
    """

    def rows(self, bad: BadSamples, rank: int, world: int) -> Iterator[PackedBatch]:
        _tell(self.rows_per_step)
        first, rows_per_step = self.position[1], self.rows_per_step // world
        stream = _Stream(self._tars(), self.maker, (self.seed, first, rank), self.shuffle)
        loader = iter(DataLoader(stream, batch_size=None, collate_fn=_as_is, num_workers=self.workers,
                                 multiprocessing_context=start_method() if self.workers else None))
        for step in range(first, self.steps):
            for row in range(rows_per_step):
                batch, skipped = next(loader)
                bad.add(batch.samples + len(skipped), skipped)
                last = row == rows_per_step - 1
                yield batch._replace(closes_step=last, position=(0, step + last, 0))

    def _tars(self) -> list[str]:
        """The tars of the mixture, as often as they are read."""
        return [str(path) for folder, times in self.folders.items() for path in sorted(folder.glob("*.tar")) * times]


class _Stream(IterableDataset[Built]):
    """Rows without end."""

    def __init__(self, tars: Sequence[str], maker: Segments, seed: tuple[int, ...], shuffle: int) -> None:
        self.tars, self.maker, self.seed, self.shuffle = tars, maker, seed, shuffle

    def __iter__(self) -> Iterator[Built]:
        info = get_worker_info()
        seed = random.Random(repr((*self.seed, info.id if info else 0))).getrandbits(32)
        pipeline = webdataset.DataPipeline(
            webdataset.ResampledShards(self.tars, seed=seed, worker_seed=lambda: seed, deterministic=True),
            # its decoders are not used, for they would run what they read
            _opened, partial(tar_file_expander, handler=_ends_early), group_by_keys,
            webdataset.shuffle(self.shuffle, seed=seed))
        waiting: list[Segment] = []
        skipped: list[Skipped] = []
        for sample in pipeline:
            try:
                waiting.append(self.maker.make(sample))
            except BadSample as error:
                tar = Path(str(sample.get("__url__", "")))
                skipped.append(Skipped(tar.parent.name, tar.name, str(sample["__key__"]), error.reason, error.detail))
            if len(waiting) == _WAITING or len(skipped) == _WAITING:
                taken = self.maker.chosen(waiting)
                yield self.maker.row([waiting[place] for place in taken]), skipped
                waiting = [one for place, one in enumerate(waiting) if place not in taken]
                skipped = []


def _opened(shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        with open(shard["url"], "rb") as stream:
            yield {**shard, "stream": stream}


def _ends_early(error: Exception) -> bool:
    """What webdataset does about a broken tar: it goes on with the next one."""
    _log.warning("data 'streaming': %s", error)
    return True


def _as_is(item: Any) -> Any:
    return item
