"""From sample numbers to a packed row.

Shape letters: L positions of a sequence, N frames, M tokens kept per frame, T packed positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aurora.errors import BadSample, bad_sample
from aurora.images import GREY, decode_image
from aurora.interfaces import Prompt, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.types import IGNORE, Frames, PackedBatch, Position

from ..plan.corpus import Corpus, frame_shape
from ..plan.epoch import EpochPlan, PlannedRow, schedule
from ..plan.lengths import row_pieces
from ..plan.packing import WHOLE, Budget, SamplePart, part_counts
from ..reader._decode import capped
from ..shards.format import VIDEO, Record, parse_record
from ..shards.index import DatasetIndex
from ..shards.tar import ShardFiles

BETWEEN = -1  # reported in place of a sample's while none is being decoded


@dataclass
class Segment:
    """One sequence of a row, its positions counted from its own start."""

    tokens: list[int] = field(default_factory=list)  # [L]
    learned: list[bool] = field(default_factory=list)  # [L]
    pixels: list[Tensor] = field(default_factory=list)  # N × [3, h, w] uint8
    places: list[range] = field(default_factory=list)  # N × M positions
    following: int = IGNORE  # the target of the last position, where the sequence goes on in another row
    timestamp: int = 0  # positions in front of each frame

    def add_text(self, ids: Sequence[int], learned: bool) -> None:
        """Appends text."""
        self.tokens += ids
        self.learned += [learned] * len(ids)

    def add_frame(self, pixels: Tensor, tokens: int, timestamp: Sequence[int] = ()) -> None:
        """Appends a frame that takes so many positions, behind the ids of its timestamp."""
        self.timestamp = len(timestamp)
        self.add_text(timestamp, False)
        self.pixels.append(pixels)
        self.places.append(range(len(self.tokens), len(self.tokens) + tokens))
        self.add_text([0] * tokens, False)

    def cut(self, start: int, stop: int) -> "Segment":
        """The positions from `start` to `stop`, which cut no frame in two."""
        inside = [number for number, place in enumerate(self.places) if start <= place.start < stop]
        return Segment(
            self.tokens[start:stop], self.learned[start:stop], [self.pixels[number] for number in inside],
            [range(self.places[number].start - start, self.places[number].stop - start) for number in inside],
            self.tokens[stop] if stop < len(self.tokens) and self.learned[stop] else IGNORE, self.timestamp)


class Skipped(NamedTuple):
    """A sample that became a placeholder."""

    dataset: str
    shard: str
    key: str
    reason: str
    detail: str


Built = tuple[PackedBatch, list[Skipped]]


def pack(sequences: Sequence[Segment]) -> PackedBatch:
    """The row of some sequences. The target of a position is the next token of its sequence if that is learned."""
    bounds = np.cumsum([0, *(len(sequence.tokens) for sequence in sequences)])
    tokens = torch.tensor([token for sequence in sequences for token in sequence.tokens], dtype=torch.int64)
    learned = torch.tensor([flag for sequence in sequences for flag in sequence.learned], dtype=torch.bool)
    following = torch.where(learned, tokens, IGNORE)
    targets = torch.cat([following[1:], torch.tensor([IGNORE])])
    targets[torch.from_numpy(bounds[1:]) - 1] = torch.tensor([sequence.following for sequence in sequences])
    groups: dict[tuple[torch.Size, int, int], list[tuple[Tensor, Tensor]]] = {}
    for start, sequence in zip(bounds.tolist(), sequences, strict=False):
        for pixels, place in zip(sequence.pixels, sequence.places, strict=True):
            groups.setdefault((pixels.shape, len(place), sequence.timestamp), []).append(
                (pixels, torch.arange(start + place.start, start + place.stop)))
    frames = tuple(Frames(torch.stack([pixels for pixels, _ in group]), torch.stack([places for _, places in group]),
                          timestamp)
                   for (_, _, timestamp), group in groups.items())
    return PackedBatch(tokens, targets, torch.from_numpy(bounds), frames, samples=0)


def blank_segment(layout: VisualLayout) -> Segment:
    """What a row without frames is given as a sequence of its own."""
    segment, size = Segment(), layout.prepare.size
    segment.add_frame(_grey(layout, size, size), layout.tokens(size, size))
    return segment


def _grey(layout: VisualLayout, height: int, width: int) -> Tensor:
    return torch.full((3, *layout.prepare.shape(height, width)), GREY, dtype=torch.uint8)


@dataclass
class RowBuilder:
    """Reads, decodes and lays out the samples of a row."""

    corpus: Corpus
    tokenizer: Tokenizer
    prompt: Prompt
    layout: VisualLayout | None
    reader: VideoReader
    sampling: Sampling
    budget: Budget
    files: ShardFiles = field(default_factory=ShardFiles)

    def parts(self, sample: int) -> int:
        """Over how many rows a sample is split."""
        corpus, one = self.corpus, slice(sample, sample + 1)
        return int(part_counts(corpus.tokens[one], corpus.text[one], corpus.frames[one], corpus.kinds[one],
                               self.budget)[0])

    def row(
        self, row: PlannedRow, given_up: Mapping[int, BadSample] = MappingProxyType({}),
        report: Callable[[int], object] = int,
    ) -> Built:
        """A row without the samples at the places in `given_up`; `report` is called with each place before its sample
        is decoded.

        One without frames is given a blank one as a sequence of its own, without targets: every rank runs its encoder
        for every row, or gradients could not be gathered.
        """
        part, sequences, skipped = row.part, [], []
        for place, sample in enumerate(row.samples):
            report(BETWEEN)
            self.files.ready(*self.corpus.locate(sample))
            report(place)
            try:
                if place in given_up:
                    raise given_up[place]
                sequences.append(self._sequence(sample, part))
            except BadSample as error:
                skipped.append(self._named(sample, error))
                sequences.append(self._placeholder(sample, part))
        if self.layout is None:
            sequences = sequences or [Segment([0], [False])]
        elif not any(sequence.pixels for sequence in sequences):
            sequences.append(blank_segment(self.layout))
        # the sample of several rows counts in the last of them, which has its answer
        real = len(row.samples) - len(skipped) if part.last else 0
        return pack(sequences)._replace(samples=real, continues=not part.first, unfinished=not part.last,
                                        closes_step=row.closes_step, position=row.position), skipped

    def _sequence(self, sample: int, part: SamplePart) -> Segment:
        index, number = self.corpus.locate(sample)
        key, raw = self.files.record(index, number)
        record = parse_record(raw)
        sequence, seen = Segment(), range(0)
        for piece in row_pieces(record, self.prompt, self.tokenizer):
            if not isinstance(piece, range):
                sequence.add_text(*piece)
                continue
            before = len(sequence.tokens)
            frames = int(self.corpus.frames[sample]) if len(piece) == len(record.media) else len(piece)
            self._add_frames(sequence, index, number, key, record, piece, frames, part.of(frames))
            seen = range(before, len(sequence.tokens))
        planned = int(self.corpus.tokens[sample])
        if len(sequence.tokens) != planned:
            raise BadSample("length", f"{len(sequence.tokens)} tokens, not {planned}")
        return sequence if part == WHOLE else sequence.cut(*self._bounds(sample, part, seen))

    def _bounds(self, sample: int, part: SamplePart, seen: range) -> tuple[int, int]:
        """Where a part of a sequence begins and ends; the frames of the whole stand at `seen`."""
        tokens, frames = int(self.corpus.tokens[sample]), int(self.corpus.frames[sample])
        if not frames:
            here = part.of(tokens)
            return here.start, here.stop
        each, here = len(seen) // frames, part.of(frames)
        start, stop = seen.start + here.start * each, seen.start + here.stop * each
        return 0 if part.first else start, tokens if part.last else stop

    def _add_frames(
        self, sequence: Segment, index: DatasetIndex, number: int, key: str, record: Record, media: range, frames: int,
        wanted: range,
    ) -> None:
        """The wanted ones of the frames of some media, prepared, and empty positions in the place of all others."""
        assert self.layout is not None
        found = 0
        for place in media:
            extension = record.media[place]
            raw = self.files.media(index, number, place, f"{key}.{extension}")
            shape = frame_shape(index.media_of(number)[place], self.layout)
            planned, each = self.layout.tokens(*shape), self.layout.positions(*shape)
            for seconds, image in self._images(raw, record, frames, wanted):
                tokens = self.layout.tokens(*image.shape[:2])
                if tokens != planned:
                    raise BadSample("length", f"{key}.{extension}: {tokens} tokens per frame, not {planned}")
                if not found:
                    sequence.add_text([0] * each * wanted.start, False)
                sequence.add_frame(self.layout.prepare(image), tokens, self.layout.timestamp(seconds))
                found += 1
        if found != len(wanted):
            raise BadSample("length", f"{found} frames, not {len(wanted)}")
        sequence.add_text([0] * each * (frames - wanted.stop), False)

    def _images(self, raw: bytes, record: Record, frames: int, wanted: range) -> Iterator[tuple[float, np.ndarray]]:
        if record.kind != VIDEO:
            yield 0.0, decode_image(raw)
            return
        sampling, before = self._moments(record, frames, wanted)
        with bad_sample("video"):
            yield from islice(self.reader.read(raw, sampling), before, before + len(wanted))

    def _moments(self, record: Record, frames: int, wanted: range) -> tuple[Sampling, int]:
        """What to sample for some of a video's frames, and how many come before them."""
        sampling = capped(replace(self.sampling, start=record.start, stop=record.stop), frames)
        fps = sampling.fps
        if len(wanted) == frames or fps is None or frames >= (self.sampling.max_frames or frames + 1):
            return sampling, wanted.start
        # At a fixed rate the frames of a part are those of a range, so that no other one is decoded.
        stop = record.stop if wanted.stop == frames else record.start + wanted.stop / fps
        return replace(sampling, start=record.start + wanted.start / fps, stop=stop), 0

    def _placeholder(self, sample: int, part: SamplePart) -> Segment:
        """A sequence of the planned length and frames without targets, so that the plan never shifts."""
        index, number = self.corpus.locate(sample)
        sequence, text = Segment(), int(self.corpus.text[sample])
        if self.layout is not None:
            shapes = [frame_shape(row, self.layout) for row in index.media_of(number)]
            if index.samples[number]["kind"] == VIDEO:
                shapes *= len(part.of(int(self.corpus.frames[sample])))
            for shape in shapes:
                sequence.add_frame(_grey(self.layout, *shape), self.layout.tokens(*shape), self.layout.timestamp(0.0))
        if not sequence.pixels:
            text = len(part.of(text))
        sequence.add_text([0] * (text if part.last or not sequence.pixels else 0), False)
        return sequence

    def _named(self, sample: int, error: BadSample) -> Skipped:
        index, number = self.corpus.locate(sample)
        try:
            key = self.files.record(index, number)[0]
        except BadSample:
            key = f"#{number}"
        return Skipped(index.folder.name, index.path(number).name, key, error.reason, error.detail)


@dataclass(frozen=True)
class RowTask:
    """The rows of a rank in so many steps from a position on, one by one; copied into every worker."""

    builder: RowBuilder
    plan_of: Callable[[Corpus], EpochPlan]
    position: Position
    steps: int
    rank: int
    world: int
    first: int = 0  # the number of the first row

    @cached_property
    def plan(self) -> EpochPlan:
        """The order of the rows."""
        return self.plan_of(self.builder.corpus)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process maps the corpus and plans anew, or it would carry the lengths of all samples.
        return {name: value for name, value in vars(self).items() if name != "plan"}

    def planned(self) -> Iterator[tuple[int, PlannedRow]]:
        """The rows with their numbers."""
        return enumerate(schedule(self.plan, position=self.position, steps=self.steps, rank=self.rank,
                                  world=self.world, parts=self.builder.parts), self.first)

    def behind(self, row: int, position: Position) -> "RowTask":
        """What is left behind a row that closed a step."""
        return replace(self, first=row + 1, position=position, steps=self.steps - 1)
