"""Which moments of a video are sampled: pure functions, so that a count planned from an index is the count read."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from aurora.errors import AuroraError
from aurora.interfaces import Sampling

# A clip of 2.0000001 s at 1 fps has two frames, not three: float noise is no moment.
_NOISE = 1e-6


def check_sampling(sampling: Sampling) -> Sampling:
    """The sampling, or AuroraError when it does not say exactly one thing."""
    if (sampling.fps is None) == (sampling.frames is None):
        raise AuroraError(f"sampling: give exactly one of fps ({sampling.fps}) and frames ({sampling.frames})")
    if sampling.fps is not None and not 0 < sampling.fps <= 1000:
        raise AuroraError(f"sampling: fps {sampling.fps} is outside (0, 1000]")
    if sampling.frames is not None and sampling.frames < 1:
        raise AuroraError(f"sampling: frames {sampling.frames} is less than 1")
    if sampling.max_frames is not None and (sampling.fps is None or sampling.max_frames < 1):
        raise AuroraError(f"sampling: max_frames {sampling.max_frames} caps fps at 1 frame or more; "
                          "with frames the number is already said")
    if not 0 <= sampling.start < (math.inf if sampling.stop is None else sampling.stop):
        raise AuroraError(f"sampling: nothing lies between start {sampling.start} and stop {sampling.stop}; both are "
                          "seconds after the first frame")
    return sampling


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
