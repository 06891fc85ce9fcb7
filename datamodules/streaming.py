"""Plain webdataset: rows from tars that have no index, packed as samples come by."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from aurora.steps import START
from aurora.types import PackedBatch, Position

from .loading.loader import BadSamples, rank_path
from .loading.rows import Built, Segment, Skipped, blank_segment, pack
from .loading.supervisor import start_method
from .plan.lengths import row_pieces
from .reader._decode import capped
from .shards.format import VIDEO, check_foreign_key, check_members, parse_record
from .shards.index import is_remote

# Sequences that wait for a row that they fit in.
_WAITING = 64
_log = logging.getLogger(__name__)


@DATA.register
class StreamingModule(DataModule, lightning.LightningDataModule):  # type: ignore[misc]
    """Tars of the folders of a mixture below `root`, read by webdataset and packed on the fly.

    For tars without an index. Every worker draws shards forever, so that all ranks make the same `max_steps` steps of
    `rows_per_step` rows and none waits for another. What this cannot promise, and `webdataset` does: that each sample
    is read once per epoch, the same order on another number of ranks or workers, going on where a run stopped.
    Samples longer than a row count as bad.
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
        self.bad: BadSamples | None = None
        self._tars = _tars(root, read_mixture("data.mixture", mixture))
        self._rows_per_step, self._steps, self._seed, self._workers, self._shuffle = (
            rows_per_step, max_steps, seed, workers, shuffle)
        self._packer = _Packer(tokenizer, prompt, layout, reader, Sampling(
            fps=fps, frames=frames, max_frames=max_frames), row_tokens, row_frames)
        self._max_bad_rate, self._bad_rate_after, self._quarantine = max_bad_rate, bad_rate_after, quarantine

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        if self._rows_per_step % world:
            raise AuroraError(f"data 'streaming': rows_per_step {self._rows_per_step} does not divide by {world} ranks")
        _warn(self._rows_per_step)
        if self.bad is None:
            self.bad = BadSamples(self._max_bad_rate, self._bad_rate_after, rank_path(self._quarantine, rank, world))
        if position == START:
            self.bad.restart()
        first = position[0] * self._steps + position[1]  # a position counts steps as windows
        return self._read(self.bad, first, steps, rank, self._rows_per_step // world)

    def steps_per_epoch(self) -> int:
        return self._steps

    def counts(self) -> dict[str, int]:
        return {"bad_samples": 0 if self.bad is None else self.bad.reasons.total()}

    def _read(self, bad: BadSamples, first: int, steps: int, rank: int, rows_per_step: int) -> Iterator[PackedBatch]:
        stream = _Stream(self._tars, self._packer, (self._seed, first, rank), self._shuffle)
        loader = iter(DataLoader(stream, batch_size=None, collate_fn=_as_is, num_workers=self._workers,
                                 multiprocessing_context=start_method() if self._workers else None))
        for step in range(first, first + steps):
            for row in range(rows_per_step):
                batch, skipped = next(loader)
                bad.add(batch.samples + len(skipped), skipped)
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


class _Stream(IterableDataset[Built]):
    """Rows without end."""

    def __init__(self, tars: Sequence[str], packer: _Packer, seed: tuple[int, ...], shuffle: int) -> None:
        self.tars, self.packer, self.seed, self.shuffle = tars, packer, seed, shuffle

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
                waiting.append(self.packer.sequence(sample))
            except BadSample as error:
                tar = Path(str(sample.get("__url__", "")))
                skipped.append(Skipped(tar.parent.name, tar.name, str(sample["__key__"]), error.reason, error.detail))
            if len(waiting) == _WAITING or len(skipped) == _WAITING:
                taken = self.packer.choose(waiting)
                yield self.packer.row([waiting[place] for place in taken]), skipped
                waiting = [one for place, one in enumerate(waiting) if place not in taken]
                skipped = []


class _Packer:
    """Makes sequences of webdataset's samples, of which nothing has been checked, and packs them as they come by."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None, reader: VideoReader,
                 sampling: Sampling, row_tokens: int, row_frames: int) -> None:
        self.tokenizer, self.prompt, self.layout, self.reader, self.sampling = (
            tokenizer, prompt, layout, reader, sampling)
        self.row_tokens, self.row_frames = row_tokens, row_frames
        self.blank = None if layout is None else blank_segment(layout)

    def sequence(self, sample: Mapping[str, Any]) -> Segment:
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
        room = self.row_tokens - (0 if sequence.pixels or self.blank is None else len(self.blank.tokens))
        if len(sequence.tokens) > room or len(sequence.pixels) > self.row_frames:
            raise BadSample("length", f"{len(sequence.tokens)} tokens and {len(sequence.pixels)} frames fit no row")
        return sequence

    def choose(self, waiting: Sequence[Segment]) -> list[int]:
        """The places of those that share the next row, the first one always among them."""
        taken, tokens, frames = list[int](), self.row_tokens, self.row_frames
        for place, sequence in enumerate(waiting):
            blank = self.blank if not sequence.pixels and frames == self.row_frames else None
            reserved = 0 if blank is None else len(blank.tokens)
            if len(sequence.tokens) + reserved <= tokens and len(sequence.pixels) <= frames:
                taken.append(place)
                tokens, frames = tokens - len(sequence.tokens), frames - len(sequence.pixels)
        return taken

    def row(self, taken: Sequence[Segment]) -> PackedBatch:
        """The row of sequences that fit into it; of none where all were bad."""
        blank = self.blank is not None and not any(sequence.pixels for sequence in taken)
        filled = [*taken, self.blank] if blank and self.blank is not None else taken
        return pack(filled or [Segment([0], [False])])._replace(samples=len(taken))

    def _add(self, sequence: Segment, raw: bytes, kind: int) -> None:
        if self.layout is None:
            raise BadSample("kind", "the model has no vision encoder")
        with bad_sample("video"):
            images = ((image for _, image in self.reader.read(raw, capped(self.sampling, self.row_frames)))
                      if kind == VIDEO else iter([decode_image(raw)]))
            for image in images:
                sequence.add_frame(self.layout.prepare(image), self.layout.tokens(*image.shape[:2]))


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
