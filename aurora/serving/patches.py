"""Which patches of a film's frame are one token at each depth: Figure A1 of the paper for every film that is served."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aurora.figures import Grouping, merged_patches, patch_grid
from aurora.images import decode_image
from aurora.inference.base_video_model import BaseVideoModel
from aurora.inference.film import Film
from aurora.interfaces import Sampling
from aurora.serving.decode import DecodeLimits, frames
from aurora.serving.errors import ApiError
from aurora.serving.files import UploadedFiles
from aurora.serving.settings import Settings

KEPT = 32
"""Frames whose groupings are kept, so that another depth of the same frame costs nothing."""
FRAME_SECONDS = 60.0
"""Of the processor that finding one frame may take."""


class Frame(NamedTuple):
    """What a film showed at a second."""

    second: float
    source: str  # "video", or "thumbnail" where the video is not kept
    pixels: np.ndarray  # [H, W, 3]


class Figure(NamedTuple):
    """A frame of a film and its groupings."""

    second: float
    source: str
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

    async def of(self, film: Film, model: BaseVideoModel, second: float) -> Figure:
        """The frame that a film showed at a second, with the groupings of `model`: from the uploaded video where it is
        kept, else from the nearest picture that the film itself keeps. ApiError where there is neither."""
        second = min(second, max(film.now.last, 0.0))
        async with self._one:
            return await asyncio.to_thread(self._of, film, model, second)

    def _of(self, film: Film, model: BaseVideoModel, second: float) -> Figure:
        begun = [medium for medium in film.media if medium.start <= second]
        video = self._files.of_sha256(begun[-1].sha256) if begun else None
        if video is not None:
            start = begun[-1].start
            return self._once((video, second), model, lambda: self._decoded(video, model, start, second))
        if not film.thumbnails:
            raise ApiError(409, "nothing of the film was seen yet; ask again in a moment")
        small = min(film.thumbnails, key=lambda small: abs(small.seconds - second))
        return self._once((small,), model, lambda: Frame(small.seconds, "thumbnail",
                                                         decode_image(small.jpeg, formats=("JPEG",))))

    def _once(self, key: tuple[Any, ...], model: BaseVideoModel, read: Callable[[], Frame]) -> Figure:
        """What is kept under a key, made where it is not there."""
        key = (*key, repr(model.settings))
        if key not in self._kept:
            self._kept[key] = _figure(model, read())
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _decoded(self, video: Path, model: BaseVideoModel, start: float, second: float) -> Frame:
        sampling = Sampling(fps=1.0, start=second - start)
        with closing(frames([video], sampling, model.config.reader, self._limits)) as shots:  # type: ignore[type-var]
            for shown, frame in shots:
                return Frame(start + shown, "video", frame)
        raise ApiError(422, f"the video shows no frame at second {second:g}")


def _figure(model: BaseVideoModel, frame: Frame) -> Figure:
    pixels = model.layout.prepare(frame.pixels).permute(1, 2, 0).numpy()
    groups = merged_patches(model.model, frame.pixels, model.layout.keep_ratio)
    return Figure(frame.second, frame.source, pixels, patch_grid(model.model, pixels), groups)
