"""The values that a film consists of: what was seen up to some frame, from which videos, and small pictures of it."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import simplejpeg
import torch.nn.functional as F
from torch import Tensor

from aurora.inference.ingest import Shot
from aurora.inference.reading import Memory
from aurora.inference.visuals import Stamp

THUMBNAILS = 24
"""Most pictures that a film keeps to be shown with; of a longer one every second is dropped, again and again."""
THUMBNAIL_SIDE = 160
"""Pixels of their long side."""


@dataclass(frozen=True)
class Snapshot:
    """What was seen up to some frame. A value: watching on gives another one."""

    memory: Memory  # of one sequence: the text before the frames and all whole chunks of frames
    pending: tuple[Shot, ...] = ()  # the frames behind them, fewer than a chunk
    reference: Tensor | None = None  # [3, h, w] uint8: the last frame that was read, which `skip` compares with
    frames: int = 0
    skipped: int = 0  # of these, because they showed nothing new
    last: float = -1.0  # second at which the last frame is shown; below 0 before the first
    seconds: float = 0.0  # how far the film was watched
    digest: str = ""  # SHA-256 over all frames and their seconds


class Medium(NamedTuple):
    """One of the videos that a film was watched from."""

    name: str
    sampling: Mapping[str, Any]
    start: float  # second of the film at which it begins
    path: str | None = None  # where it can be read again, on this machine
    sha256: str | None = None  # of the file, once it was watched to its end
    stamp: Stamp | None = None  # of the file at `path` when it was watched


class Thumbnail(NamedTuple):
    """A small picture of a frame."""

    seconds: float
    jpeg: bytes

    @property
    def url(self) -> str:
        """A data URL for a page."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def digest_with(before: str, shot: Shot) -> str:
    """The digest of what was seen, with one more frame."""
    facts = f"{before} {shot.seconds!r} {shot.keep} {tuple(shot.pixels.shape)} {shot.sha256}"
    return hashlib.sha256(facts.encode()).hexdigest()


def with_thumbnail(kept: tuple[Thumbnail, ...], number: int, shot: Shot) -> tuple[Thumbnail, ...]:
    """The pictures with that of frame `number`, where it is one that is kept: always the first, evenly spread."""
    every = 1
    while number // every >= THUMBNAILS:
        every *= 2
    if number % every:
        return kept
    if number and number == THUMBNAILS * every // 2:  # twice as far apart from here on
        kept = kept[::2]
    return (*kept, Thumbnail(shot.seconds, _small(shot.pixels)))


def _small(pixels: Tensor) -> bytes:
    """[3, h, w] → a JPEG with a long side of at most THUMBNAIL_SIDE."""
    scale = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[1:]))
    size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
    small = pixels if scale == 1 else F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    jpeg: bytes = simplejpeg.encode_jpeg(small.permute(1, 2, 0).contiguous().numpy(), quality=80)
    return jpeg
