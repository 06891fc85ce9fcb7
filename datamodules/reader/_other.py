"""Readers on other decoders, which are used only where they agree with a file's packets."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from aurora.frames import has_alpha, turn

from ._deadline import Deadline, label
from ._decode import shown_at
from ._file import Packets, first_frame
from .pyav import PyavReader

BATCH = 8
"""Frames decoded per call: other decoders hold a whole batch, so that this bounds their memory."""
Batch = tuple[np.ndarray, np.ndarray]
"""[n] seconds on the clock of the file, [n, H, W, 3] uint8."""
_log = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()


class Unfit(Exception):
    """Why a decoder cannot be trusted with a file."""


class OtherReader(PyavReader):
    """Reads ordinary files with another decoder, and all others with PyAV, with one warning per reason."""

    codecs: tuple[str, ...] | None = None
    """Those that the decoder was found to get right; None: all."""

    errors: tuple[type[Exception], ...]
    """What the decoder raises."""

    @abstractmethod
    def open(self, source: str | bytes, first: float) -> tuple[int, Callable[[list[int]], Batch]]:
        """How many frames the decoder finds, and what gives those of some numbers, in the order of time; the first one
        is shown at `first` seconds."""

    def frames(
        self, source: str | bytes, packets: Packets, times: list[float], deadline: Deadline
    ) -> Iterator[tuple[float, np.ndarray]]:
        done = 0
        try:
            for images in self._batches(source, packets, times):
                deadline.check()
                yield from zip(times[done:done + len(images)], images, strict=True)
                done += len(images)
        except Unfit as reason:
            name = type(self).__module__.rpartition(".")[2]
            if (name, str(reason)) not in _warned:
                _warned.add((name, str(reason)))
                _log.warning("reader %s: %s is read with pyav, because %s; so is every such file from here on", name,
                             label(source), reason)
            yield from super().frames(source, packets, times[done:], deadline)

    def _batches(self, source: str | bytes, packets: Packets, times: list[float]) -> Iterator[np.ndarray]:
        if self.codecs is not None and packets.codec not in self.codecs:
            raise Unfit(f"it gets {packets.codec} wrong or cannot decode it")
        shape, order = _check(packets, source), np.sort(packets.starts)
        wanted = np.searchsorted(order, packets.starts[shown_at(packets, times)]).tolist()
        try:
            count, read = self.open(source, float(order[0]) * packets.tick)
            if count != len(order):
                raise Unfit("it finds another number of frames")
            for at in range(0, len(wanted), BATCH):
                starts, images = read(wanted[at:at + BATCH])
                check_starts(starts, order[wanted[at:at + BATCH]] * packets.tick)
                if images.shape[1:3] != shape:
                    raise Unfit("it shows frames of another size")
                yield images
        except self.errors as error:
            raise Unfit("it cannot decode it") from error


def _check(packets: Packets, source: str | bytes) -> tuple[int, int]:
    """Height and width of the frames of a file that any decoder reads alike. Unfit for others."""
    if not (packets.whole and packets.ordinary):
        raise Unfit("decoders disagree on files that are not mp4, webm or mkv, or that have an edit list, several "
                    "videos, frames without a time, or keyframes which need what is before them")
    frame, width, height = first_frame(source)
    if any(turn(frame)) or frame.interlaced_frame or has_alpha(frame) or (width, height) != (frame.width, frame.height):
        raise Unfit("its frames are turned, flipped, interlaced, transparent or of pixels that are not square")
    return height, width


def check_starts(found: np.ndarray, starts: np.ndarray) -> None:
    """Unfit unless a decoder's times of some frames are those that the packets say, in seconds."""
    # Times may come in float32, and half of the smallest difference between two frames tells them apart.
    apart = float(np.diff(np.unique(starts)).min(initial=np.inf)) / 2
    slack = min(apart, 1e-3 + float(np.spacing(np.float32(abs(starts).max()))))
    if len(found) != len(starts) or (abs(found - starts) > slack).any():
        raise Unfit("it finds frames at other times than the packets say")
