"""From sample numbers to a packed row.

Shape letters: L positions of a sequence, N frames, M tokens kept per frame, T packed positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.images import VisualLayout
from aurora.interfaces import Prompt, Sampling, Tokenizer, VideoReader
from aurora.types import IGNORE, Frames, PackedBatch

from ._corpus import Corpus, frame_shape
from ._files import ShardFiles
from ._index import DatasetIndex
from ._lengths import text_pieces
from ._samples import VIDEO, BadSample, Record, decode_image, parse_record
from .reader._sampling import capped

BETWEEN = -1  # what is noted when no sample is in hand


@dataclass
class Segment:
    """One sequence of a row, its positions counted from its own start."""

    tokens: list[int] = field(default_factory=list)  # [L]
    learned: list[bool] = field(default_factory=list)  # [L]
    pixels: list[Tensor] = field(default_factory=list)  # N × [3, h, w] uint8
    places: list[range] = field(default_factory=list)  # N × M positions

    def add_text(self, ids: Sequence[int], learned: bool) -> None:
        """Appends text."""
        self.tokens += ids
        self.learned += [learned] * len(ids)

    def add_frame(self, pixels: Tensor, tokens: int) -> None:
        """Appends a frame that takes so many positions."""
        self.pixels.append(pixels)
        self.places.append(range(len(self.tokens), len(self.tokens) + tokens))
        self.add_text([0] * tokens, False)


class Skipped(NamedTuple):
    """A sample that became a placeholder."""

    dataset: str
    shard: str
    key: str
    reason: str
    detail: str


def pack(sequences: Sequence[Segment]) -> PackedBatch:
    """The row of some sequences. The target of a position is the next token of its sequence if that is learned."""
    bounds = np.cumsum([0, *(len(sequence.tokens) for sequence in sequences)])
    tokens = torch.tensor([token for sequence in sequences for token in sequence.tokens], dtype=torch.int64)
    learned = torch.tensor([flag for sequence in sequences for flag in sequence.learned], dtype=torch.bool)
    following = torch.where(learned, tokens, IGNORE)
    targets = torch.cat([following[1:], torch.tensor([IGNORE])])
    targets[torch.from_numpy(bounds[1:]) - 1] = IGNORE
    groups: dict[tuple[torch.Size, int], list[tuple[Tensor, Tensor]]] = {}
    for start, sequence in zip(bounds.tolist(), sequences, strict=False):
        for pixels, place in zip(sequence.pixels, sequence.places, strict=True):
            groups.setdefault((pixels.shape, len(place)), []).append(
                (pixels, torch.arange(start + place.start, start + place.stop)))
    frames = tuple(Frames(torch.stack([pixels for pixels, _ in group]), torch.stack([places for _, places in group]))
                   for group in groups.values())
    return PackedBatch(tokens, targets, torch.from_numpy(bounds), frames, samples=0)


@dataclass
class RowBuilder:
    """Reads, decodes and lays out the samples of a row."""

    corpus: Corpus
    tokenizer: Tokenizer
    prompt: Prompt
    layout: VisualLayout | None
    reader: VideoReader
    sampling: Sampling
    files: ShardFiles = field(default_factory=ShardFiles)

    def row(
        self, samples: Sequence[int], given_up: Mapping[int, BadSample] = MappingProxyType({}),
        note: Callable[[int], object] = int,
    ) -> tuple[PackedBatch, list[Skipped]]:
        """The row of some samples, or of none: a placeholder for a rank that has nothing to do in this micro-step.

        Samples at the places in `given_up` are not tried; `note` is told each place before its sample is decoded.
        A row without frames is given a blank one as a sequence of its own, without targets: every rank runs its
        encoder in every micro-step, or gradients could not be gathered.
        """
        sequences, skipped = [], []
        for place, sample in enumerate(samples):
            note(place)
            try:
                if place in given_up:
                    raise given_up[place]
                sequences.append(self._sequence(sample))
            except BadSample as error:
                skipped.append(self._named(sample, error))
                sequences.append(self._placeholder(sample))
        if self.layout is None:
            sequences = sequences or [Segment([0], [False])]
        elif not any(sequence.pixels for sequence in sequences):
            sequences.append(self._blank(self.layout))
        return pack(sequences)._replace(samples=len(samples) - len(skipped)), skipped

    def _sequence(self, sample: int) -> Segment:
        index, number = self.corpus.locate(sample)
        key, raw = self.files.record(index, number)
        record = parse_record(raw)
        sequence = Segment()
        for piece in text_pieces(record, self.prompt, self.tokenizer):
            if piece is None:
                for pixels, tokens in self._frames(index, number, key, record, int(self.corpus.frames[sample])):
                    sequence.add_frame(pixels, tokens)
            else:
                sequence.add_text(*piece)
        planned = (int(self.corpus.tokens[sample]), int(self.corpus.frames[sample]))
        if (len(sequence.tokens), len(sequence.pixels)) != planned:
            raise BadSample("length", f"{len(sequence.tokens)} tokens and {len(sequence.pixels)} frames, not {planned}")
        return sequence

    def _frames(
        self, index: DatasetIndex, number: int, key: str, record: Record, count: int
    ) -> Iterator[tuple[Tensor, int]]:
        """The prepared pixels of every frame, and how many positions it takes."""
        assert self.layout is not None
        for place, extension in enumerate(record.media):
            raw = self.files.media(index, number, place, f"{key}.{extension}")
            planned = self.layout.tokens(*frame_shape(index.media_of(number)[place], self.layout))
            for image in self._images(raw, record.kind, count):
                tokens = self.layout.tokens(*image.shape[:2])
                if tokens != planned:
                    raise BadSample("length", f"{key}.{extension}: {tokens} tokens per frame, not {planned}")
                yield self.layout.prepare(image), tokens

    def _images(self, raw: bytes, kind: int, count: int) -> Iterator[np.ndarray]:
        if kind != VIDEO:
            yield decode_image(raw)
            return
        try:
            for _, image in self.reader.read(raw, capped(self.sampling, count)):
                yield image
        except AuroraError as error:
            raise BadSample("video", str(error)) from error

    def _placeholder(self, sample: int) -> Segment:
        """A sequence of the planned length and frames without targets, so that the plan never shifts."""
        index, number = self.corpus.locate(sample)
        sequence = Segment()
        if self.layout is not None:
            media = index.media_of(number)
            repeat = int(self.corpus.frames[sample]) if index.samples[number]["kind"] == VIDEO else 1
            for row in media:
                height, width = frame_shape(row, self.layout)
                for _ in range(repeat):
                    sequence.add_frame(self._grey(height, width), self.layout.tokens(height, width))
        sequence.add_text([0] * int(self.corpus.text[sample]), False)
        return sequence

    def _blank(self, layout: VisualLayout) -> Segment:
        segment, size = Segment(), layout.prepare.size
        segment.add_frame(self._grey(size, size), layout.tokens(size, size))
        return segment

    def _grey(self, height: int, width: int) -> Tensor:
        assert self.layout is not None
        return torch.full((3, *self.layout.prepare.shape(height, width)), 127, dtype=torch.uint8)

    def _named(self, sample: int, error: BadSample) -> Skipped:
        index, number = self.corpus.locate(sample)
        try:
            key = self.files.record(index, number)[0]
        except BadSample:
            key = f"#{number}"
        return Skipped(index.folder.name, index.path(number).name, key, error.reason, error.detail)
