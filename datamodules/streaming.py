"""Plain webdataset: rows from tars that have no index, packed as samples come by."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from aurora.errors import AuroraError
from aurora.images import VisualLayout
from aurora.interfaces import DataModule, Prompt, Sampling, Tokenizer, VideoReader
from aurora.mixture import Mixture, Part, read_mixture
from aurora.registry import DATA
from aurora.types import PackedBatch

from ._files import is_remote
from ._loader import BadSamples
from ._rows import Segment, Skipped
from ._samples import BadSample
from ._schedule import Position, check_position, rank_and_world
from ._segments import Segments
from ._worker import Built
from ._workers import start_method
from .reader._sampling import check_sampling

# Sequences that wait for a row that they fit in.
_WAITING = 64
_log = logging.getLogger(__name__)


@DATA.register
class StreamingModule(lightning.LightningDataModule, DataModule):  # type: ignore[misc]
    """Tars of the folders of a mixture below `root`, read by webdataset and packed on the fly.

    For tars without an index. Every worker draws shards for ever, so that all ranks make the same steps of
    `rows_per_step` rows and none waits for another. What this cannot promise, and `webdataset` does: that each sample
    is read once per epoch, the same order on another number of ranks or workers, going on where a run stopped.
    Samples longer than a row count as bad.
    """

    def __init__(
        self, *, root: str, mixture: Mapping[str, Any] | Mixture, row_tokens: int, row_frames: int, rows_per_step: int,
        tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None, reader: VideoReader,
        max_steps: int | None, seed: int = 0, workers: int = 0, shuffle: int = 1000,
        fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
        max_bad_rate: float = 0.01, bad_rate_after: int = 200, quarantine: str | None = None,
    ) -> None:
        super().__init__()
        if max_steps is None:
            raise AuroraError("data 'streaming': a stream has no end; stages.STAGE.max_steps says how long to train")
        least = {"row_tokens": (row_tokens, 1), "row_frames": (row_frames, 1), "rows_per_step": (rows_per_step, 1),
                 "max_steps": (max_steps, 1), "workers": (workers, 0), "shuffle": (shuffle, 1), "seed": (seed, 0)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise AuroraError(f"data 'streaming': {name} {value} must be {smallest} or more")
        self.position: Position = (0, 0, 0)
        self.bad: BadSamples | None = None
        self.tars = _tars(root, read_mixture("data.mixture", mixture))
        self.rows_per_step, self.steps, self.seed, self.workers, self.shuffle = (
            rows_per_step, max_steps, seed, workers, shuffle)
        self._maker = Segments(tokenizer, prompt, layout, reader, check_sampling(
            Sampling(fps=fps, frames=frames, max_frames=max_frames)), row_tokens, row_frames)
        self._bad = (max_bad_rate, bad_rate_after, None if quarantine is None else Path(quarantine))

    def train_dataloader(self) -> Iterator[PackedBatch]:
        rank, world = rank_and_world(self.trainer)
        if self.rows_per_step % world:
            raise AuroraError(f"data 'streaming': rows_per_step {self.rows_per_step} does not divide by {world} ranks")
        _log.warning("data 'streaming': order and repeats depend on ranks and workers, samples are drawn with "
                     "replacement, a resumed run draws anew, and a step is %d rows whatever the stage's global_batch",
                     self.rows_per_step)
        path = self._bad[2]
        if path is not None and world > 1:
            path = path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self.bad = BadSamples(self._bad[0], self._bad[1], path)
        return self._rows(self.bad, rank, self.rows_per_step // world)

    def _rows(self, bad: BadSamples, rank: int, rows_per_step: int) -> Iterator[PackedBatch]:
        first = self.position[1]
        stream = _Stream(self.tars, self._maker, (self.seed, first, rank), self.shuffle)
        loader = iter(DataLoader(stream, batch_size=None, collate_fn=_as_is, num_workers=self.workers,
                                 multiprocessing_context=start_method() if self.workers else None))
        for step in range(first, self.steps):
            for row in range(rows_per_step):
                batch, skipped = next(loader)
                bad.add(batch.samples + len(skipped), skipped)
                last = row == rows_per_step - 1
                yield batch._replace(closes_step=last, position=(0, step + last, 0))

    def steps_per_epoch(self) -> int:
        return self.steps

    def total_steps(self) -> int:
        return self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.position = check_position(state_dict.get("position"))


def _tars(root: str, mixture: Mixture) -> list[str]:
    """The tars of a mixture, as often as they are read."""
    if is_remote(root):
        raise AuroraError(f"data 'streaming': {root} is not on this machine; data=webdataset reads from there")
    tars: list[str] = []
    for name, part in mixture.datasets.items():
        if part != Part(repeats=part.repeats):
            raise AuroraError(f"data 'streaming': of a mixture it knows folders and repeats; {name} says more")
        found = sorted(str(path.absolute()) for path in Path(root, name).glob("*.tar"))
        if not found:
            raise AuroraError(f"data 'streaming': {Path(root, name)} holds no tar")
        tars += found * part.repeats
    return tars


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
