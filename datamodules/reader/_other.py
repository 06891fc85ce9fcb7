"""Readers on other decoders, which are used only where they agree with a file's packets.

Shape letters: P shown frames, W wanted ones, H height, W width of a frame.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from ._decode import shown_at
from ._file import Deadline, Packets, Shape, label, stored_shape
from .pyav import PyavReader

BATCH = 8
"""Frames decoded per call: other decoders hold a whole batch, so that this bounds their memory."""
_log = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()


class Unfit(Exception):
    """Why a decoder cannot be trusted with a file."""


class OtherReader(PyavReader):
    """Reads ordinary files with another decoder, and all others with PyAV, with one warning per reason.

    The moments are those that the file's packets say, as with every reader.
    """

    codecs: tuple[str, ...] | None = None
    """Those that the decoder was found to get right; None: all."""

    @abstractmethod
    def decoded(self, source: str | bytes, starts: np.ndarray, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """[W] batches of [n, H, W, 3] uint8: the wanted frames, by their numbers in the order of time.

        `starts` are the seconds [P] at which the file's packets say that its frames are shown. Unfit where this
        decoder says otherwise or fails.
        """

    def frames(
        self, source: str | bytes, packets: Packets, times: list[float], deadline: Deadline
    ) -> Iterator[tuple[float, np.ndarray]]:
        done = 0
        try:
            if self.codecs is not None and packets.codec not in self.codecs:
                raise Unfit(f"it gets {packets.codec} wrong or cannot decode it")
            shape = _check(packets, source)
            order = np.sort(packets.starts)
            wanted = np.searchsorted(order, packets.starts[shown_at(packets, times)])
            for images in self.decoded(source, order * packets.tick, wanted):
                deadline.check()
                if images.shape[1:3] != shape[:2]:
                    raise Unfit("it shows frames of another size")
                yield from zip(times[done:done + len(images)], images, strict=True)
                done += len(images)
        except Unfit as reason:
            name = type(self).__module__.rpartition(".")[2]
            if (name, str(reason)) not in _warned:
                _warned.add((name, str(reason)))
                _log.warning("reader %s: %s is read with pyav, because %s; so is every such file from here on", name,
                             label(source), reason)
            yield from super().frames(source, packets, times[done:], deadline)


def _check(packets: Packets, source: str | bytes) -> Shape:
    """The shape of the frames of a file that any decoder reads alike. Unfit for others."""
    if not (packets.whole and packets.ordinary):
        raise Unfit("decoders disagree on files that are not mp4, webm or mkv, or that have an edit list, several "
                    "videos, frames without a time, or keyframes which need what is before them")
    shape = stored_shape(source)
    if shape.rotation or shape.interlaced:
        raise Unfit("its frames are turned or interlaced")
    return shape


def check_starts(found: np.ndarray, starts: np.ndarray) -> None:
    """Unfit unless a decoder's times of some frames are those that the packets say, in seconds."""
    # Times may come in float32, and half of the smallest difference between two frames tells them apart.
    apart = float(np.diff(np.unique(starts)).min(initial=np.inf)) / 2
    slack = min(apart, 1e-3 + float(np.spacing(np.float32(abs(starts).max()))))
    if len(found) != len(starts) or (abs(found - starts) > slack).any():
        raise Unfit("it finds frames at other times than the packets say")
