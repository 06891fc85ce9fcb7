from collections.abc import Iterator

import numpy as np

from aurora.interfaces import Sampling, VideoReader
from aurora.options import PositiveFloat
from aurora.registry import READER

from ._deadline import Deadline
from ._decode import frames_at, moments
from ._file import TIMEOUT_SECONDS, Packets, Threads, scan


@READER.register
class PyavReader(VideoReader):
    """PyAV, decoding no more than what the sampled frames need: right for B-frames, edit lists, odd start times,
    variable rates and rotation; damaged pictures are errors.

    `timeout_seconds` is for all frames of one video together. `threads` decode one video; loader workers need one.
    """

    def __init__(self, *, timeout_seconds: PositiveFloat | None = TIMEOUT_SECONDS, threads: Threads = 1) -> None:
        self.timeout_seconds, self.threads = timeout_seconds, threads

    def read(self, source: str | bytes, sampling: Sampling) -> Iterator[tuple[float, np.ndarray]]:
        deadline = Deadline(self.timeout_seconds, source)
        packets = scan(source, deadline)
        yield from deadline.timed(self.frames(source, packets, moments(packets, sampling, source), deadline))

    def times(self, source: str | bytes, sampling: Sampling) -> list[float]:
        return moments(scan(source, Deadline(self.timeout_seconds, source)), sampling, source)

    def duration(self, source: str | bytes) -> float:
        return scan(source, Deadline(self.timeout_seconds, source)).clip.duration

    def frames(
        self, source: str | bytes, packets: Packets, times: list[float], deadline: Deadline
    ) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, [H, W, 3] uint8) of the frame shown at each moment."""
        return frames_at(source, packets, times, threads=self.threads, deadline=deadline)
