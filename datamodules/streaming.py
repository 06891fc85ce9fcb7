import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.images import decode_image
from aurora.interfaces import DataModule, Prompt, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.mixture import Mixture, Part, read_mixture
from aurora.options import NonNegativeInt, PositiveInt, Share
from aurora.registry import DATA
from aurora.types import PackedBatch, Position

from .loading.bad_samples import BadSamples
from .loading.rows import Built, Segment, Skipped, blank_segment, pack
from .loading.supervisor import start_method
from .plan.corpus import blank_tokens
from .plan.lengths import row_pieces
from .plan.packing import Budget
from .reader._decode import capped
from .shards.format import VIDEO, check_foreign_key, check_members, parse_record
from .shards.index import is_remote

# Sequences that wait for a row that they fit in.
_WAITING = 64
_log = logging.getLogger(__name__)


@DATA.register
class StreamingModule(DataModule, lightning.LightningDataModule):  # type: ignore[misc]
    """Tars without an index, of a mixture's folders below `root`: read by webdataset and packed on the fly.

    Every worker draws shards forever, so that all ranks make the same `max_steps` steps of `rows_per_step` rows. What
    this cannot promise, and `webdataset` does: that each sample is read once per epoch, the same order on another
    number of ranks or workers, going on where a run stopped. Samples longer than a row count as bad.
    """

    def __init__(
        self, *, root: str, mixture: Mapping[str, Any] | Mixture, row_tokens: PositiveInt, row_frames: PositiveInt,
        rows_per_step: PositiveInt, tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None,
        reader: VideoReader, max_steps: PositiveInt | None, seed: NonNegativeInt = 0, workers: NonNegativeInt = 0,
        shuffle: PositiveInt = 1000, fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
        max_bad_rate: Share = 0.01, bad_rate_after: PositiveInt = 200, quarantine: str | None = None,
    ) -> None:
        super().__init__()
        if max_steps is None:
            raise AuroraError("data 'streaming': its rows have no end; max_steps says how many to read: that of the "
                              "stage, and stages.STAGE.validation.max_steps")
        self.bad = BadSamples(max_bad_rate, bad_rate_after, None if quarantine is None else Path(quarantine))
        self._rows_per_step, self._steps, self._seed, self._workers = rows_per_step, max_steps, seed, workers
        self._stream = _Stream(_tars(root, read_mixture("data.mixture", mixture)), tokenizer, prompt, layout, reader,
                               Sampling(fps, frames, max_frames), Budget(row_tokens, row_frames, blank_tokens(layout)),
                               shuffle)

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        if self._rows_per_step % world:
            raise AuroraError(f"data 'streaming': rows_per_step {self._rows_per_step} does not divide by {world} ranks")
        _warn(self._rows_per_step)
        self.bad.begin(position, rank, world)
        first = position[0] * self._steps + position[1]  # a position counts steps as windows
        return self._read(first, steps, rank, self._rows_per_step // world)

    def steps_per_epoch(self) -> int:
        return self._steps

    def counts(self) -> dict[str, int]:
        return {"bad_samples": self.bad.reasons.total()}

    def _read(self, first: int, steps: int, rank: int, rows_per_step: int) -> Iterator[PackedBatch]:
        stream = replace(self._stream, seed=(self._seed, first, rank))
        loader = iter(DataLoader(stream, batch_size=None, collate_fn=tuple, num_workers=self._workers,
                                 multiprocessing_context=start_method() if self._workers else None))
        for step in range(first, first + steps):
            for row in range(rows_per_step):
                batch, skipped = next(loader)
                self.bad.add(batch.samples + len(skipped), skipped)
                last = row == rows_per_step - 1
                yield batch._replace(closes_step=last, position=(*divmod(step + last, self._steps), 0))


@cache
def _warn(rows_per_step: int) -> None:
    """Once, and not for every validation."""
    _log.warning("data 'streaming': order and repeats depend on ranks and workers, samples are drawn with replacement, "
                 "a resumed run draws anew, and a step is %d rows whatever the stage's global_batch", rows_per_step)


def _tars(root: str, mixture: Mixture) -> list[str]:
    """The tars of every folder of a mixture, as often as they are read. AuroraError for a folder without any."""
    if is_remote(root):
        raise AuroraError(f"data 'streaming': {root} is not on this machine; data=webdataset reads from there")
    found = []
    for name, part in mixture.datasets.items():
        if part != Part(repeats=part.repeats):
            raise AuroraError("data 'streaming': of a mixture only folders and repeats are supported; "
                              f"{name} has more options")
        tars = sorted(Path(root, name).absolute().glob("*.tar"))
        if not tars:
            raise AuroraError(f"data 'streaming': {Path(root, name)} holds no tar")
        found += [str(tar) for tar in tars * part.repeats]
    return found


@dataclass(eq=False)
class _Stream(IterableDataset[Built]):
    """Rows without end: sequences of webdataset's samples, of which nothing has been checked, packed as they come."""

    tars: Sequence[str]
    tokenizer: Tokenizer
    prompt: Prompt
    layout: VisualLayout | None
    reader: VideoReader
    sampling: Sampling
    budget: Budget
    shuffle: int
    seed: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Built]:
        info = get_worker_info()
        seed = random.Random(repr((*self.seed, info.id if info else 0))).getrandbits(32)
        pipeline = webdataset.DataPipeline(
            webdataset.ResampledShards(self.tars, seed=seed, worker_seed=lambda: seed, deterministic=True),
            # its decoders are not used, for they would run what they read
            _opened, partial(tar_file_expander, handler=_ends_early),
            partial(group_by_keys, handler=_ends_early),
            webdataset.shuffle(self.shuffle, seed=seed))
        waiting: list[Segment] = []
        skipped: list[Skipped] = []
        for sample in pipeline:
            try:
                waiting.append(self._sequence(sample))
            except BadSample as error:
                tar = Path(str(sample.get("__url__", "")))
                skipped.append(Skipped(tar.parent.name, tar.name, str(sample["__key__"]), error.reason, error.detail))
            if len(waiting) == _WAITING or len(skipped) == _WAITING:
                yield self._take_row(waiting), skipped
                skipped = []

    def _sequence(self, sample: Mapping[str, Any]) -> Segment:
        """The sequence of a sample. BadSample when none fits a row."""
        key = sample["__key__"]
        check_foreign_key(key)
        if "json" not in sample:
            raise BadSample("json", f"{key} has no json member")
        record, sequence = parse_record(sample["json"]), Segment()
        check_members(record, sample)
        for piece in row_pieces(record, self.prompt, self.tokenizer):
            if not isinstance(piece, range):
                sequence.add_text(*piece)
                continue
            for extension in record.media[piece.start:piece.stop]:
                if extension not in sample:
                    raise BadSample("missing", f"no member {key}.{extension}")
                self._add(sequence, sample[extension], record.kind)
        room = self.budget.tokens - (0 if sequence.pixels else self.budget.blank)
        if len(sequence.tokens) > room or len(sequence.pixels) > self.budget.frames:
            raise BadSample("length", f"{len(sequence.tokens)} tokens and {len(sequence.pixels)} frames fit no row")
        return sequence

    def _take_row(self, waiting: list[Segment]) -> PackedBatch:
        """The row of the first sequence that waits and of those that fit beside it, which wait no longer; without any
        sequence where all were bad."""
        taken, left, tokens, frames = list[Segment](), list[Segment](), self.budget.tokens, self.budget.frames
        for sequence in waiting:
            blank = self.budget.blank if not sequence.pixels and frames == self.budget.frames else 0
            if len(sequence.tokens) + blank <= tokens and len(sequence.pixels) <= frames:
                taken.append(sequence)
                tokens, frames = tokens - len(sequence.tokens), frames - len(sequence.pixels)
            else:
                left.append(sequence)
        waiting[:] = left
        blank_frame = [blank_segment(self.layout)] if self.layout is not None and frames == self.budget.frames else []
        return pack([*taken, *blank_frame] or [Segment([0], [False])])._replace(samples=len(taken))

    def _add(self, sequence: Segment, raw: bytes, kind: int) -> None:
        if self.layout is None:
            raise BadSample("kind", "the model has no vision encoder")
        with bad_sample("video"):
            images = (self.reader.read(raw, capped(self.sampling, self.budget.frames)) if kind == VIDEO
                      else iter([(0.0, decode_image(raw))]))
            for seconds, image in images:
                sequence.add_frame(self.layout.prepare(image), self.layout.tokens(*image.shape[:2]),
                                   self.layout.timestamp(seconds))


def _opened(shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        with open(shard["url"], "rb") as stream:
            yield {**shard, "stream": stream}


def _ends_early(error: Exception) -> bool:
    """What webdataset does about a broken tar: it goes on with the next one."""
    _log.warning("data 'streaming': %s", error)
    return True
