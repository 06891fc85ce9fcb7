"""Reads text and frames into states with the backbone's runner: many sequences, any length in constant memory.

Shape letters: S sequences, D backbone width, N frames, M tokens kept per frame.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aurora.interfaces import Runner, Text, Tokenizer, Visual, VisualLayout
from aurora.model import AuroraModel
from aurora.types import State, join_states, select_state

CHUNK_FRAMES = (8, 16)
"""Fewest and most frames that go through the vision encoder together."""

CHUNK_PIXELS = 16 * 96 * 96
"""Of small frames so many go together that they have as many pixels: the interpreter takes as long for a chunk of them
as for a single frame."""

ROW_TOKENS = 8192
"""Positions of one packed row, over all its sequences."""


class Memory(NamedTuple):
    """What S sequences have read so far. A value: reading on gives another one."""

    hidden: Tensor | None  # [S, D] at the last position read; None before the first
    state: State

    @property
    def sequences(self) -> int:
        """S."""
        return next(iter(self.state.values())).shape[1]

    def last_hidden(self) -> Tensor:
        """[S, D]; ValueError when nothing was read."""
        if self.hidden is None:
            raise ValueError("nothing was read yet, so there is nothing to answer from")
        return self.hidden


class Chunk(NamedTuple):
    """Frames that go through the vision encoder together."""

    pixels: Tensor  # [N, 3, h, w] uint8
    keep: int  # M
    seconds: Sequence[float]  # N: when each is shown


class Pieces(NamedTuple):
    """A tokenized prompt, cut where the visual tokens stand."""

    leading: tuple[int, ...]
    trailing: tuple[int, ...]


def blank(runner: Runner, sequences: int) -> Memory:
    """The memory of sequences that have read nothing."""
    return Memory(None, runner.backbone.init_state(sequences))


def fork(memory: Memory, sequences: Sequence[int]) -> Memory:
    """The memories of some sequences, in the order asked for; repeats fork."""
    hidden = None if memory.hidden is None else memory.hidden[list(sequences)]
    return Memory(hidden, select_state(memory.state, list(sequences)))


def join(memories: Sequence[Memory]) -> Memory:
    """The memories of several calls side by side; of those that have read nothing the hidden is 0."""
    read = [memory.hidden for memory in memories if memory.hidden is not None]
    hidden = [read[0].new_zeros(memory.sequences, read[0].shape[1]) if memory.hidden is None else memory.hidden
              for memory in memories if read]
    return Memory(torch.cat(hidden) if read else None, join_states([memory.state for memory in memories]))


def tokenize(tokenizer: Tokenizer, pieces: Sequence[Text | Visual]) -> Pieces:
    """The ids before and after the one Visual; every text is tokenized by itself, as in training."""
    places = [index for index, piece in enumerate(pieces) if isinstance(piece, Visual)]
    if len(places) > 1:
        raise ValueError(f"a prompt has one place for what is seen, not {len(places)}")
    cut = places[0] if places else len(pieces)
    ids = [tokenizer.encode(piece.text) if isinstance(piece, Text) else [] for piece in pieces]
    return Pieces(tuple(chain(*ids[:cut])), tuple(chain(*ids[cut:])))


@torch.inference_mode()
def read_texts(runner: Runner, memory: Memory, texts: Sequence[Sequence[int]]) -> Memory:
    """Each of S sequences reads its own ids; an empty text leaves its sequence as it is."""
    reading = [s for s, text in enumerate(texts) if text]
    if not reading:
        return memory
    if len(reading) < len(texts):
        read = read_texts(runner, fork(memory, reading), [texts[s] for s in reading])
        unread = torch.zeros_like(read.last_hidden()[:1]).expand(len(texts), -1)
        hidden = torch.cat([unread if memory.hidden is None else memory.hidden, read.last_hidden()])
        both = Memory(hidden, join_states([memory.state, read.state]))
        return fork(both, [len(texts) + reading.index(s) if text else s for s, text in enumerate(texts)])
    device = next(runner.backbone.parameters()).device
    ids = torch.tensor([token for text in texts for token in text], device=device)
    bounds = torch.tensor([0, *(len(text) for text in texts)], device=device).cumsum(0)
    return Memory(*runner.prefill(runner.backbone.embed(ids), bounds, memory.state))


@torch.inference_mode()
def read_frames(
    model: AuroraModel, runner: Runner, memory: Memory, frames: Iterable[tuple[float, np.ndarray]], layout: VisualLayout
) -> Memory:
    """All S sequences read the same frames (seconds, [H, W, 3] uint8), which are encoded once."""
    for chunk in _chunks(frames, layout):
        memory = read_tokens(runner, memory, encode(model, chunk))
    return memory


@torch.inference_mode()
def encode(model: AuroraModel, chunk: Chunk, encoder: Callable[[Tensor, int], Tensor] | None = None) -> Tensor:
    """[T, D]: all that stands in a row for these frames; `encoder` may take the place of `model.encode`."""
    pixels = chunk.pixels.to(next(model.vision.parameters()).device, non_blocking=True)
    return model.encode_frames(pixels, chunk.keep, chunk.seconds, encode=encoder)


@torch.inference_mode()
def read_tokens(runner: Runner, memory: Memory, x: Tensor) -> Memory:
    """All S sequences read the same embedded tokens [T, D]."""
    for part in torch.split(x, max(1, ROW_TOKENS // memory.sequences)):
        bounds = torch.arange(memory.sequences + 1, device=x.device) * len(part)
        row = part if memory.sequences == 1 else part.repeat(memory.sequences, 1)
        memory = Memory(*runner.prefill(row, bounds, memory.state))
    return memory


def frames_per_chunk(height: int, width: int) -> int:
    """How many prepared frames of this height and width in pixels go through the vision encoder together."""
    fewest, most = CHUNK_FRAMES
    return max(fewest, min(most, CHUNK_PIXELS // (height * width)))


def _chunks(frames: Iterable[tuple[float, np.ndarray]], layout: VisualLayout) -> Iterator[Chunk]:
    """The frames, those in a row of one shape together, up to a chunk."""
    pending: list[Tensor] = []
    times: list[float] = []
    keep = 0
    for seconds, frame in frames:
        pixels, wanted = layout.prepare(frame), layout.tokens(*frame.shape[:2])
        if pending and (wanted != keep or pixels.shape != pending[0].shape):
            yield Chunk(torch.stack(pending), keep, times)
            pending, times = [], []
        pending.append(pixels)
        times.append(seconds)
        keep = wanted
        if len(pending) == frames_per_chunk(*pixels.shape[1:]):
            yield Chunk(torch.stack(pending), keep, times)
            pending, times = [], []
    if pending:
        yield Chunk(torch.stack(pending), keep, times)
