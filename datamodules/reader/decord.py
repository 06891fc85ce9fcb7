"""A faster reader for plain files. On files cut with an edit list, MPEG-TS and the like its timestamps are wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator

import decord
import numpy as np

from aurora.errors import AuroraError
from aurora.interfaces import Sampling, VideoReader
from aurora.registry import READER

from ._clip import Clip, label, measure
from ._sampling import check_sampling, sample_times

# Frames decoded per call: decord holds a whole batch, so that this bounds its memory.
_BATCH = 8


@READER.register
class DecordReader(VideoReader):
    """decord, for plain files: its timestamps are wrong in files cut with an edit list, MPEG-TS and the like.

    The moments are those that the file's packets say, as with every reader; only decoding is decord's.
    """

    def read(self, source: str | bytes, sampling: Sampling) -> Iterator[tuple[float, np.ndarray]]:
        times, clip = self._planned(source, sampling)
        try:
            video = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else source, num_threads=1)
            indices = _indices(video, times, clip)
            for start in range(0, len(times), _BATCH):
                images = video.get_batch(indices[start:start + _BATCH]).asnumpy()
                yield from zip(times[start:start + _BATCH], images, strict=True)
        except (decord.DECORDError, RuntimeError) as error:
            raise AuroraError(f"{label(source)} cannot be read by decord: {str(error).splitlines()[-1]}") from error

    def times(self, source: str | bytes, sampling: Sampling) -> list[float]:
        return self._planned(source, sampling)[0]

    def _planned(self, source: str | bytes, sampling: Sampling) -> tuple[list[float], Clip]:
        check_sampling(sampling)
        clip = measure(source)
        return sample_times(sampling, clip.duration, clip.span), clip


def _indices(video: decord.VideoReader, times: list[float], clip: Clip) -> list[int]:
    """For every moment the index of the last frame that began by then."""
    starts = video.get_frame_timestamp(range(len(video)))[:, 0].astype(np.float64)
    starts -= starts[0]
    # decord's timestamps are float32: a moment counts as reached within half a tick or what that type can tell.
    slack = clip.tick / 2 + np.spacing(np.float32(clip.last))
    return [int(index) for index in np.maximum(np.searchsorted(starts, np.array(times) + slack, side="right") - 1, 0)]
