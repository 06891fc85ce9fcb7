"""The default reader: PyAV in one pass, choosing frames by their timestamps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from aurora.errors import AuroraError
from aurora.interfaces import Sampling, VideoReader
from aurora.registry import READER

from ._clip import Clip, label, measure, open_video
from ._sampling import check_sampling, sample_times


@READER.register
class PyavReader(VideoReader):
    """PyAV in one pass: right for B-frames, edit lists, odd start times and variable rates; upright."""

    def read(self, source: str | bytes, sampling: Sampling) -> Iterator[tuple[float, np.ndarray]]:
        check_sampling(sampling)
        clip = measure(source)
        with open_video(source) as (container, stream):
            stream.thread_type = "SLICE"
            frames = container.decode(stream)
            for time, frame, shape in _shown_at(_times(clip, sampling), frames, clip, source):
                yield time, _pixels(frame, shape)

    def times(self, source: str | bytes, sampling: Sampling) -> list[float]:
        check_sampling(sampling)
        return _times(measure(source), sampling)


def _times(clip: Clip, sampling: Sampling) -> list[float]:
    return sample_times(sampling, clip.duration, clip.span)


def _shown_at(
    times: list[float], frames: Iterator[Any], clip: Clip, source: str | bytes
) -> Iterator[tuple[float, Any, tuple[int, int]]]:
    """For every moment the last frame that began by then; after the end, the last frame goes on being shown."""
    current = next(frames, None)
    if current is None:
        raise AuroraError(f"{label(source)} holds no frame that can be decoded")
    shape = (current.width, current.height)
    following = next(frames, None)
    for time in times:
        # Half a tick, because a timestamp in milliseconds can lie just after the moment it stands for.
        until = clip.first + time + clip.tick / 2
        while following is not None and (following.time is None or following.time <= until):
            current, following = following, next(frames, None)
        yield time, current, shape


def _pixels(frame: Any, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8, upright; a stream that changes its size keeps that of its first frame."""
    width, height = shape
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90 % 4))
