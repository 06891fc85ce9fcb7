"""Sequences of samples that nothing is known of before they are read, and rows of them packed as they come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora.errors import AuroraError
from aurora.interfaces import Prompt, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.types import PackedBatch

from ..plan.lengths import text_pieces
from .rows import Segment, blank_segment, pack
from aurora.images import decode_image
from ..shards.format import VIDEO, BadSample, check_key, parse_record
from ..reader._sampling import capped


class Segments:
    """Sequences from webdataset's samples, which nothing has been checked of."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None, reader: VideoReader,
                 sampling: Sampling, row_tokens: int, row_frames: int) -> None:
        self.tokenizer, self.prompt, self.layout, self.reader, self.sampling = (
            tokenizer, prompt, layout, reader, sampling)
        self.row_tokens, self.row_frames = row_tokens, row_frames
        self.blank = None if layout is None else blank_segment(layout)

    def make(self, sample: Mapping[str, Any]) -> Segment:
        """The sequence of a sample. BadSample when it has none that fits a row."""
        try:
            key = check_key(sample["__key__"])
        except AuroraError as error:
            raise BadSample("key", str(error)) from error
        if "json" not in sample:
            raise BadSample("json", f"{key} has no json member")
        record, sequence = parse_record(sample["json"]), Segment()
        for piece in text_pieces(record, self.prompt, self.tokenizer):
            if piece is not None:
                sequence.add_text(*piece)
                continue
            for extension in record.media:
                if extension not in sample:
                    raise BadSample("missing", f"no member {key}.{extension}")
                self._add(sequence, sample[extension], record.kind)
        room = self.row_tokens - (0 if sequence.pixels or self.blank is None else len(self.blank.tokens))
        if len(sequence.tokens) > room or len(sequence.pixels) > self.row_frames:
            raise BadSample("length", f"{len(sequence.tokens)} tokens and {len(sequence.pixels)} frames fill no row")
        return sequence

    def _add(self, sequence: Segment, raw: bytes, kind: int) -> None:
        if self.layout is None:
            raise BadSample("kind", "the model sees nothing")
        try:
            images = ((image for _, image in self.reader.read(raw, capped(self.sampling, self.row_frames)))
                      if kind == VIDEO else iter([decode_image(raw)]))
            for image in images:
                sequence.add_frame(self.layout.prepare(image), self.layout.tokens(*image.shape[:2]))
        except AuroraError as error:
            raise BadSample("video", str(error)) from error

    def chosen(self, waiting: Sequence[Segment]) -> list[int]:
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
