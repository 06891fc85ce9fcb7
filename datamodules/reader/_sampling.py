"""Which moments of a video are sampled: pure functions, so that a count planned from an index is the count read."""

from __future__ import annotations

import dataclasses

import numpy as np

from aurora.interfaces import Sampling

# A clip of 2.0000001 s at 1 fps has two frames, not three: float noise does not make a moment.
_NOISE = 1e-6


def sample_counts(sampling: Sampling, duration: np.ndarray) -> np.ndarray:
    """[S] seconds → [S] int64: how many frames are read of videos, or ranges of videos, that last so long."""
    if sampling.frames is not None:
        return np.full(duration.shape, sampling.frames, np.int64)
    assert sampling.fps is not None
    count = np.maximum(1, np.ceil(duration * sampling.fps - _NOISE)).astype(np.int64)
    return count if sampling.max_frames is None else np.minimum(count, sampling.max_frames)


def sample_times(sampling: Sampling, duration: float, last: float) -> list[float]:
    """Seconds after the first frame: start, start + 1/fps, ... for `duration`, or spread evenly over `last` seconds.

    `last` is when the last frame begins and `duration` when it ends, both from the start of what is sampled.
    """
    count = int(sample_counts(sampling, np.array([duration]))[0])
    if sampling.fps is not None:
        uncapped = int(sample_counts(Sampling(fps=sampling.fps), np.array([duration]))[0])
        if count == uncapped:
            return [sampling.start + number / sampling.fps for number in range(count)]
    return [sampling.start + float(time) for time in np.linspace(0.0, last, count)]


def capped(sampling: Sampling, count: int) -> Sampling:
    """The sampling that reads at most `count` frames."""
    if sampling.frames is not None:
        return dataclasses.replace(sampling, frames=min(sampling.frames, count))
    return dataclasses.replace(sampling, max_frames=min(sampling.max_frames or count, count))
