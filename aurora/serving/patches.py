"""Which patches of a film's frame are one token at each depth: Figure A1 of the paper for every film that is served."""

import asyncio
from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aurora.figures import Grouping, merged_patches, patch_grid
from aurora.images import decode_image
from aurora.inference.film import Film
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling
from aurora.serving.decode import DecodeLimits, frames
from aurora.serving.errors import ApiError
from aurora.serving.files import UploadedFiles
from aurora.serving.settings import Settings

KEPT = 32
"""Frames whose groupings are kept, so that another depth of the same frame costs nothing."""
FRAME_SECONDS = 60.0
"""Of the processor that finding one frame may take."""


class Figure(NamedTuple):
    """A frame of a film and its groupings."""

    second: float
    source: str  # "video", or "thumbnail" where the video is not kept
    pixels: np.ndarray  # [h, w, 3], prepared
    grid: tuple[int, int]
    groups: list[Grouping]


class Figures:
    """The groupings of frames, the last ones kept. One is made at a time: answers go first."""

    def __init__(self, files: UploadedFiles, settings: Settings) -> None:
        self._files = files
        self._limits = DecodeLimits(seconds=min(FRAME_SECONDS, settings.decode_seconds),
                                    memory_bytes=settings.decode_bytes)
        self._kept: OrderedDict[tuple[Any, ...], Figure] = OrderedDict()
        self._one = asyncio.Lock()

    async def of(self, film: Film, model: VideoModel, second: float) -> Figure:
        """The frame that a film showed at a second, with the groupings of `model`. ApiError where there is no frame."""
        key = (film.now.digest, second, repr(model.settings))
        async with self._one:
            if key not in self._kept:
                self._kept[key] = await asyncio.to_thread(self._make, film, model, second)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _make(self, film: Film, model: VideoModel, second: float) -> Figure:
        second, frame, source = self._frame(film, min(second, max(film.now.last, 0.0)))
        pixels = model.layout.prepare(frame).permute(1, 2, 0).numpy()
        groups = merged_patches(model.model, frame, model.layout.keep_ratio)
        return Figure(second, source, pixels, patch_grid(model.model, pixels), groups)

    def _frame(self, film: Film, second: float) -> tuple[float, np.ndarray, str]:
        """From the uploaded video where it is kept, else the nearest picture that the film itself keeps."""
        mediums = [medium for medium in film.media if medium.start <= second]
        video = self._files.of_sha256(mediums[-1].sha256) if mediums else None
        if video is not None:
            start = mediums[-1].start
            shown, frame = self._decoded(video, film.model.config.reader, second - start)
            return start + shown, frame, "video"
        if not film.thumbnails:
            raise ApiError(409, "nothing of the film was seen yet; ask again in a moment")
        small = min(film.thumbnails, key=lambda small: abs(small.seconds - second))
        return small.seconds, decode_image(small.jpeg, formats=("JPEG",)), "thumbnail"

    def _decoded(self, video: Path, reader: Any, start: float) -> tuple[float, np.ndarray]:
        with closing(frames([video], Sampling(fps=1.0, start=start), reader, self._limits)) as shots:  # type: ignore[type-var]
            return next(shots)
