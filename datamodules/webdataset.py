import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from aurora.errors import AuroraError
from aurora.interfaces import DataModule, Prompt, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.mixture import Mixture, read_mixture
from aurora.options import NonNegativeInt, PositiveFloat, PositiveInt, Share
from aurora.registry import DATA
from aurora.types import PackedBatch, Position

from .inspect.reads import measured
from .loading.bad_samples import BadSamples
from .loading.prefetch import Prefetch
from .loading.rows import RowBuilder, RowTask
from .loading.supervisor import supervised
from .loading.worker import WorkerLimits
from .plan.corpus import FOLDER, Corpus, Missing, TooLong, blank_tokens, build_corpus
from .plan.epoch import BatchUnit, EpochPlan
from .plan.packing import Budget
from .shards.format import IMAGE, IMAGES, VIDEO
from .shards.index import is_remote
from .shards.tar import ShardFiles

_log = logging.getLogger(__name__)


def plan_of(
    corpus: Corpus, *, budget: Budget, seed: int, mix_kinds: bool, global_batch: int, batch_unit: BatchUnit
) -> EpochPlan:
    """Rows and steps of every epoch of a corpus. Unless kinds are mixed, single images and text are one group."""
    apart = np.isin(corpus.kinds, (IMAGES, VIDEO)) & (not mix_kinds and (corpus.kinds == IMAGE).any())
    return EpochPlan(corpus.members, tokens=corpus.tokens, frames=corpus.frames, budget=budget, seed=seed,
                     group=apart.astype(np.uint8), global_batch=global_batch, batch_unit=batch_unit)


@DATA.register
class WebDatasetModule(DataModule, lightning.LightningDataModule):  # type: ignore[misc]
    """WebDataset shards: a mixture of the folders below `root`, in rows of at most `row_tokens` and `row_frames`.

    A step takes about `global_batch` samples on all ranks together. `fps` (with `max_frames`) or `frames` say which
    frames of a video are read. `mix_kinds` lets single images share rows and steps with videos and multi-image
    samples. `batch_unit: tokens` makes `global_batch` count row positions. `missing: drop` reads a mixture without
    the folders that are not there. A video longer than a row is read with fewer frames (`too_long: shrink`), it or
    a text is split over several rows (`split`), left out (`drop`) or an error (`refuse`). `root` may be
    remote (s3, gs, https): shards are then kept below `cache`. `verify` compares every byte. Samples that cannot be
    read become placeholders without loss, are listed in the file `quarantine`, and stop the run when they are more than
    `max_bad_rate` of the first `bad_rate_after` samples or of all later.
    """

    def __init__(
        self, *, root: str, mixture: Mapping[str, Any] | Mixture, row_tokens: PositiveInt, row_frames: PositiveInt,
        global_batch: PositiveInt, tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None,
        reader: VideoReader, epochs: PositiveInt = 1, max_steps: PositiveInt | None = None, seed: NonNegativeInt = 0,
        workers: NonNegativeInt = 0, fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
        mix_kinds: bool = False, too_long: TooLong = "shrink", missing: Missing = "refuse",
        batch_unit: BatchUnit = "samples", max_bad_rate: Share = 0.01, bad_rate_after: PositiveInt = 200,
        quarantine: str | None = None, sample_seconds: PositiveFloat = 600.0, worker_bytes: PositiveInt = 4 << 30,
        prefetch_rows: PositiveInt = 2, prefetch_bytes: PositiveInt = 1 << 30, verify: bool = False,
        cache: str | None = None, cache_bytes: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self._limits = WorkerLimits(sample_seconds, worker_bytes, prefetch_rows, prefetch_bytes)
        if batch_unit == "tokens" and global_batch < row_tokens:
            raise AuroraError(f"data 'webdataset': a step of {global_batch} tokens is less than a row of {row_tokens}; "
                              "with batch_unit=tokens, stages.STAGE.global_batch counts tokens")
        self.bad = BadSamples(max_bad_rate, bad_rate_after, None if quarantine is None else Path(quarantine))
        self.worker_deaths = 0
        """Workers of this rank that died or hung so far; each was replaced."""
        self._root, self._mixture = root, read_mixture("data.mixture", mixture)
        self._missing, self._remote = missing, is_remote(root)
        self._cache = Path(cache) if cache else Path.home() / ".cache" / "aurora" / "shards"
        self._cache_bytes, self._verify = cache_bytes, verify
        self._sampling = Sampling(fps=fps, frames=frames, max_frames=max_frames)
        self._budget = Budget(row_tokens, row_frames, blank_tokens(layout))
        self._tokenizer, self._prompt, self._layout, self._reader = tokenizer, prompt, layout, reader
        self._epochs, self._max_steps, self._workers, self._too_long = epochs, max_steps, workers, too_long
        self._plan_of = partial(plan_of, budget=self._budget, seed=seed, mix_kinds=mix_kinds, global_batch=global_batch,
                                batch_unit=batch_unit)
        self._order = [seed, global_batch, batch_unit, mix_kinds]

    @cached_property
    def corpus(self) -> Corpus:
        """The samples of the mixture. AuroraError when a shard is missing or was cut."""
        # Where the shards cannot be written to, the run's own folder holds what was measured.
        scratch = None if self.bad.path is None else self.bad.path.parent / FOLDER
        root = Path(self._root)
        if self._remote:
            from .shards.remote import mirror  # the packages behind it are not needed for local shards

            root = mirror(self._root, self._mixture.datasets, self._cache.expanduser().absolute(), self._cache_bytes)
        return build_corpus(
            root, self._mixture, tokenizer=self._tokenizer, prompt=self._prompt, layout=self._layout,
            sampling=self._sampling, budget=self._budget, too_long=self._too_long, missing=self._missing,
            scratch=scratch)

    @cached_property
    def plan(self) -> EpochPlan:
        """Rows and steps of every epoch."""
        return self._plan_of(self.corpus)

    def describe(self) -> dict[str, Any]:
        """What an epoch reads of each dataset, how full rows are and what is missing, as JSON."""
        return measured(self.corpus, self.plan, self._mixture)

    def reads(self) -> dict[str, int]:
        """What the whole training reads, up to `max_steps`: steps, visits to samples, their tokens and frames."""
        steps = self.total_steps()
        visits = self.plan.visits(steps)
        return {"steps": steps, "visits": int(visits.sum()), "tokens": int(visits @ self.corpus.tokens),
                "frames": int(visits @ self.corpus.frames)}

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        self.bad.after = min(self.bad.after, self.plan.samples)
        self.bad.begin(position, rank, world)
        return self._load(self.task(position, steps=steps, rank=rank, world=world))

    def task(self, position: Position, *, steps: int, rank: int, world: int) -> RowTask:
        """How each of those rows is built, by whatever process."""
        builder = RowBuilder(self.corpus, self._tokenizer, self._prompt, self._layout, self._reader, self._sampling,
                             self._budget, ShardFiles(verify=self._verify))
        return RowTask(builder, self._plan_of, position, steps, rank, world)

    def steps_per_epoch(self) -> int:
        return self.plan.steps_before(1, 0)

    def total_steps(self) -> int:
        steps = self.plan.steps_before(self._epochs, 0)
        return steps if self._max_steps is None else min(steps, self._max_steps)

    @property
    def epochs(self) -> int:
        return self._epochs

    def identity(self) -> str:
        decides = json.dumps([self.corpus.identity, *self._order])
        return hashlib.sha256(decides.encode()).hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        return {"bad_samples": self.bad.reasons.total(), "worker_deaths": self.worker_deaths}

    def samples(self) -> int:
        return self.reads()["visits"]

    def fill(self) -> tuple[float, float]:
        return self.plan.fill()

    def _load(self, task: RowTask) -> Iterator[PackedBatch]:
        """The rows of a task; workers live as long as the iteration."""
        pin = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        ahead = Prefetch(task) if self._remote else None
        built = (supervised(task, self._workers, self._limits, self._count_death) if self._workers
                 else (task.builder.row(row) for _, row in task.planned()))
        try:
            for batch, skipped in built:
                self.bad.add(batch.samples + len(skipped), skipped)
                if ahead:
                    ahead.reached(batch.position)
                yield _pinned(batch) if pin else batch
        finally:
            if ahead:
                ahead.stop()
            if self.bad.reasons:
                listed = f"; they are listed in {self.bad.listed}" if self.bad.listed else ""
                _log.warning("data: %s%s", self.bad.summary(), listed)

    def _count_death(self) -> None:
        self.worker_deaths += 1


def _pinned(batch: PackedBatch) -> PackedBatch:
    """The row in page-locked memory, from which a GPU is filled while it computes."""
    frames = tuple(group._replace(pixels=group.pixels.pin_memory(), positions=group.positions.pin_memory())
                   for group in batch.frames)
    return batch._replace(tokens=batch.tokens.pin_memory(), targets=batch.targets.pin_memory(),
                          cu_seqlens=batch.cu_seqlens.pin_memory(), frames=frames)
