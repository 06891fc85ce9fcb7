"""Decoding what a plan says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from aurora.errors import AuroraError

from ._clip import Packets, packets_of
from ._file import Deadline, label, open_video
from ._plan import Plan, Run, plan

# Packets that are read over rather than searched for: a search costs more in files without an index.
_FAR = 256


class _LostPlace(Exception):
    """A search ended behind the packet that was wanted."""


def frames_at(
    source: str | bytes, packets: Packets, times: list[float], *, threads: int, deadline: Deadline,
    short_side: int | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, [H, W, 3] uint8, upright) of the frame shown at each moment, streamed. AuroraError.

    With `short_side` both sides are even and the short one is at most that: a frame is made smaller where its colours
    are converted, which costs less than to convert all of it.
    """
    done = 0
    try:
        for found in _frames_at(source, packets, times, threads, deadline, short_side, seek=packets.ordinary):
            yield found
            done += 1
    except _LostPlace:
        yield from _frames_at(source, packets, times[done:], threads, deadline, short_side, seek=False)


def _frames_at(
    source: str | bytes, packets: Packets, times: list[float], threads: int, deadline: Deadline,
    short_side: int | None, *, seek: bool
) -> Iterator[tuple[float, np.ndarray]]:
    wanted, shape = plan(packets, times), None
    with open_video(source, threads=threads) as (container, stream):
        frames = _Decoder(container, stream, packets, wanted, deadline, seek=seek).frames()
        current, following = next(frames, None), None
        for time, tick, floor in zip(times, wanted.ticks, wanted.floors, strict=True):
            # The frame that begins at the tick ends the search, because the one after it may be far away.
            while current is not None and current.tick != tick:
                following = following or next(frames, None)
                if following is None or following.tick > tick:
                    break
                current, following = following, None
            if current is None or current.tick < floor:
                raise AuroraError(f"{label(source)} holds no frame that can be decoded at {time:.2f} s")
            if current.damaged:
                raise AuroraError(f"{label(source)} is damaged before {time:.2f} s")
            shape = shape or _shape(current.frame, short_side)
            yield time, _pixels(current.frame, shape)


class _Shown(NamedTuple):
    tick: int
    frame: Any
    damaged: bool  # it, or one since the last keyframe, in a way that FFmpeg painted over


class _Decoder:
    """Decodes the runs of a plan; between them the decoder is emptied, because they do not follow on each other."""

    def __init__(
        self, container: Any, stream: Any, packets: Packets, wanted: Plan, deadline: Deadline, *, seek: bool
    ) -> None:
        self.container, self.stream, self.context = container, stream, stream.codec_context
        self.packets, self.plan, self.deadline, self.seek = packets, wanted, deadline, seek
        self._first = int(packets.starts[packets.shown].min())
        self._stored = enumerate(packets_of(container, stream))
        self._next = 0  # the number of the packet that comes next

    def frames(self) -> Iterator[_Shown]:
        """Decoded frames in the order in which they are shown."""
        damaged, tick = False, self._first
        ordered = np.sort(self.packets.starts[self.packets.shown])
        for number, frame in enumerate(self._decoded()):
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if self.packets.counted:
                tick = int(ordered[min(number, len(ordered) - 1)])
            elif frame.pts is not None:
                tick = frame.pts
            if tick >= self._first:
                yield _Shown(tick, frame, damaged)

    def _decoded(self) -> Iterator[Any]:
        for run in self.plan.runs:
            for number, packet in self._packets(run):
                if self.plan.whole is not None:
                    self.context.skip_frame = "DEFAULT" if self.plan.whole[number] else "NONREF"
                yield from self.context.decode(packet)
            yield from self.context.decode(None)
            self.context.flush_buffers()

    def _packets(self, run: Run) -> Iterator[tuple[int, Any]]:
        if self.seek and run.begin - self._next > _FAR:
            self._search(run.begin)
        for number, packet in self._stored:
            self.deadline.check()
            self._next = number + 1
            if number >= run.begin:
                yield number, packet
            if self._next >= run.end:
                return

    def _search(self, wanted: int) -> None:
        """Goes on at a keyframe that is not after the wanted packet."""
        self.container.seek(int(self.packets.starts[wanted]), stream=self.stream, backward=True)
        rest = packets_of(self.container, self.stream)
        for packet in rest:
            here = np.flatnonzero(self.packets.keys & (self.packets.starts == packet.pts))
            if len(here):
                if here[0] > wanted:
                    break
                self._stored = enumerate(chain([packet], rest), int(here[0]))
                return
        raise _LostPlace


def _shape(frame: Any, short_side: int | None) -> tuple[int, int]:
    """Width and height that frames are given, before they are turned upright."""
    width, height = frame.width, frame.height
    if short_side is None:
        return width, height
    scale = min(1.0, short_side / min(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _pixels(frame: Any, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8, upright; a stream that changes its size keeps that of its first frame."""
    width, height = shape
    image = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90 % 4))
