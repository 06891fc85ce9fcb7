from collections.abc import Iterator

import lightning
import torch

from aurora.errors import AuroraError
from aurora.interfaces import DataModule, Tokenizer, VisualLayout
from aurora.options import NonNegativeInt, PositiveInt
from aurora.registry import DATA
from aurora.types import PackedBatch, Position

from .loading.rows import Segment, pack


@DATA.register
class SyntheticModule(DataModule, lightning.LightningDataModule):  # type: ignore[misc]
    """Random rows, for benchmarks: nothing is read from disk.

    A row holds `row_samples` samples: `frames` random frames, one a second, then `text_tokens` random tokens to be
    learned.
    `height` and `width` are those of the frames before preparation.
    """

    def __init__(
        self, *, tokenizer: Tokenizer, layout: VisualLayout | None, global_batch: PositiveInt, steps: PositiveInt,
        row_samples: PositiveInt = 1, frames: NonNegativeInt = 8, height: PositiveInt = 384, width: PositiveInt = 384,
        text_tokens: PositiveInt = 64, seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if frames and layout is None:
            raise AuroraError(f"data 'synthetic': the model has no vision encoder, so frames {frames} must be 0")
        if global_batch % row_samples:
            raise AuroraError(f"data 'synthetic': global_batch {global_batch} is not a multiple of row_samples "
                              f"{row_samples}")
        self._vocab, self._layout, self._seed, self._steps = tokenizer.vocab_size, layout, seed, steps
        self._rows, self._row_samples = global_batch // row_samples, row_samples
        self._frames, self._shape, self._text = frames, (height, width), text_tokens

    def steps_per_epoch(self) -> int:
        return self._steps

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        each = -(-self._rows // world)
        first = position[0] * self._steps + position[1]  # a position counts steps as windows
        for step in range(first, first + steps):
            for turn in range(each):
                closes = turn == each - 1
                batch = self._row(step, turn * world + rank)
                yield batch._replace(closes_step=closes, position=(*divmod(step + closes, self._steps), 0))

    def _row(self, step: int, row: int) -> PackedBatch:
        """A row past the last of its step is a placeholder: the same shape, without targets."""
        generator = torch.Generator().manual_seed(hash((self._seed, step, row)) & 0x7FFF_FFFF)
        real = row < self._rows
        batch = pack([self._segment(generator, real) for _ in range(self._row_samples)])
        return batch._replace(samples=self._row_samples if real else 0)

    def _segment(self, generator: torch.Generator, learned: bool) -> Segment:
        segment = Segment()
        segment.add_text(torch.randint(self._vocab, (1,), generator=generator).tolist(), False)
        for number in range(self._frames):
            assert self._layout is not None
            shape = (3, *self._layout.prepare.shape(*self._shape))
            pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            segment.add_frame(pixels, self._layout.tokens(*self._shape), self._layout.timestamp(number))
        segment.add_text(torch.randint(self._vocab, (self._text,), generator=generator).tolist(), learned)
        return segment
