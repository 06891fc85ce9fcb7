"""Which moments of a video are sampled and which packets decoded for them, as pure functions, and decoding just those.

Shape letters: P packets in the order of the file, W wanted frames in the order of time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from aurora.errors import AuroraError
from aurora.frames import square_size, upright_rgb
from aurora.images import resized
from aurora.interfaces import Sampling

from ._deadline import Deadline, label
from ._file import Packets, open_video, packets_of
from ._frame import animation

# Packets that are read over rather than searched for: a search costs more in files without an index.
_FAR = 256


class ReadPlan(NamedTuple):
    """What is shown at every moment, and how to get it: in arrays, because lists of a long video take megabytes."""

    ticks: np.ndarray  # [N] int64: the frame of a moment is the last one that begins by then ...
    floors: np.ndarray  # [N] int64: ... and where it begins before that, it was not decoded
    runs: list[range]  # packets that are decoded one after the other; the first needs nothing from before it
    whole: np.ndarray | None  # [P] bool: others may go when no frame refers to them; none: nothing may go


# A clip of 2.0000001 s at 1 fps has two frames, not three: float noise does not make a moment.
_NOISE = 1e-6


def sample_counts(sampling: Sampling, duration: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """[S] seconds and frames of videos, or of ranges of videos → [S] int64: how many frames are read of them."""
    if sampling.frames is not None:
        return np.asarray(np.clip(frames, 1, sampling.frames), np.int64)
    assert sampling.fps is not None
    count = np.maximum(1, np.ceil(duration * sampling.fps - _NOISE)).astype(np.int64)
    return count if sampling.max_frames is None else np.minimum(count, sampling.max_frames)


def sample_times(sampling: Sampling, duration: float, begins: np.ndarray) -> list[float]:
    """Seconds after the first frame: start, start + 1/fps, ... for `duration`, or spread evenly over the frames [F],
    which are sorted and begin with `start`; each of them once where they are no more than `frames`."""
    seconds, frames = np.array([duration]), np.array([len(begins)])
    count = int(sample_counts(sampling, seconds, frames)[0])
    if sampling.fps is not None and count == sample_counts(Sampling(fps=sampling.fps), seconds, frames)[0]:
        return [sampling.start + number / sampling.fps for number in range(count)]
    if sampling.frames is not None and count == len(begins):
        return [float(time) for time in begins]
    return [float(time) for time in np.linspace(begins[0], begins[-1], count)]


def capped(sampling: Sampling, count: int) -> Sampling:
    """The sampling that reads at most `count` frames."""
    if sampling.frames is not None:
        return replace(sampling, frames=min(sampling.frames, count))
    return replace(sampling, max_frames=min(sampling.max_frames or count, count))


def moments(packets: Packets, sampling: Sampling, source: str | bytes) -> list[float]:
    """The moments of a checked sampling, in seconds after the first frame."""
    duration = packets.within(sampling.start, sampling.stop, source).duration
    return sample_times(sampling, duration, packets.begins(sampling.start, sampling.start + duration))


def shown_at(packets: Packets, times: list[float]) -> np.ndarray:
    """[W] int64: the number of the packet whose frame is shown at each moment, the last one forever."""
    shown = np.flatnonzero(packets.shown)
    order = shown[np.argsort(packets.starts[shown], kind="stable")]
    starts = packets.starts[order] * packets.tick
    until = starts[0] + np.array(times) + _slack(packets)
    return np.asarray(order[np.maximum(np.searchsorted(starts, until, side="right") - 1, 0)])


def _slack(packets: Packets) -> float:
    """Seconds after a moment at which a frame may still begin: half a tick, because a timestamp in milliseconds can lie
    just after the moment it stands for, but no more than the tick of an AVI, which is a whole frame, would allow."""
    return min(packets.tick / 2, 1e-3)


def plan_read(packets: Packets, times: list[float]) -> ReadPlan:
    """The cheapest way to the frames of some moments that cannot change them: of every group of pictures that holds
    one, the packets up to it; in H.264 without the frames that no other refers to. Everything where packets do not say
    when they are shown."""
    wanted, first = shown_at(packets, times), int(packets.starts[packets.shown].min())
    if not packets.whole:
        ticks = first + np.floor((np.array(times) + _slack(packets)) / packets.tick).astype(np.int64)
        return ReadPlan(ticks, np.full(len(times), first), [range(len(packets.starts))], None)
    # From the last keyframe before each wanted packet, or from the beginning, which is always right.
    keys = np.concatenate([[0], np.flatnonzero(packets.keys)])
    at = np.searchsorted(keys, wanted, side="right") - 1
    # A frame that is shown before the keyframe it follows may need the frames before that one.
    leading = packets.starts[keys[at]] > packets.starts[wanted]
    begins = keys[np.maximum(at - leading, 0)]
    # A picture may be two packets, one per field: the neighbours of a wanted one are always decoded with it.
    ends = np.minimum(wanted + 2, len(packets.starts))
    floors = np.maximum(packets.starts[begins], first)
    whole = None
    if packets.codec == "h264":  # wanted packets and their neighbours
        whole = np.zeros(len(packets.starts), bool)
        whole[np.clip(wanted + np.array([[-1], [0], [1]]), 0, len(whole) - 1)] = True
    ticks = packets.starts[wanted]
    return ReadPlan(ticks, np.minimum(floors, ticks), _joined(begins, ends), whole)


def _joined(begins: np.ndarray, ends: np.ndarray) -> list[range]:
    """Runs in the order of the file; those that overlap or touch are one."""
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    apart = np.flatnonzero(begins[1:] > ends[:-1])
    starts, stops = begins[np.append(0, apart + 1)], ends[np.append(apart, len(ends) - 1)]
    return list(map(range, starts.tolist(), stops.tolist()))


class _LostPlace(Exception):
    """A search ended behind the packet that was wanted."""


def frames_at(
    source: str | bytes, packets: Packets, times: list[float], *, threads: int, deadline: Deadline,
    short_side: int | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, [H, W, 3] uint8, upright) of the frame shown at each moment, streamed. AuroraError.

    With `short_side` both sides are even and the short one is at most that, which costs less than all of the frame.
    """
    if packets.codec == "animation":
        yield from _animated_at(source, shown_at(packets, times).tolist(), times, deadline, short_side)
        return
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
    wanted, shape = plan_read(packets, times), None
    with open_video(source, threads=threads) as (container, stream, decoder):
        frames = _shown(_decoded(container, stream, decoder, packets, wanted, deadline, seek=seek), packets)
        current, following = next(frames, None), None
        for time, tick, floor in zip(times, map(int, wanted.ticks), map(int, wanted.floors), strict=True):
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
            # a stream that changes its size keeps that of its first frame
            shape = shape or _smaller(*square_size(current.frame, stream), short_side)
            yield time, upright_rgb(current.frame, *shape)


class _Shown(NamedTuple):
    tick: int
    frame: Any
    damaged: bool  # it, or one since the last keyframe, in a way that FFmpeg painted over


def _shown(decoded: Iterator[Any], packets: Packets) -> Iterator[_Shown]:
    """Decoded frames in the order in which they are shown."""
    ordered = np.sort(packets.starts[packets.shown])
    first = tick = int(ordered[0])
    damaged = False
    for number, frame in enumerate(decoded):
        damaged = frame.is_corrupt or (damaged and not frame.key_frame)
        if packets.counted:
            tick = int(ordered[min(number, len(ordered) - 1)])
        elif frame.pts is not None:
            tick = frame.pts
        if tick >= first:
            yield _Shown(tick, frame, damaged)


def _decoded(
    container: Any, stream: Any, decoder: Any, packets: Packets, plan: ReadPlan, deadline: Deadline, *, seek: bool
) -> Iterator[Any]:
    """The frames of the runs; between them the decoder is emptied, because they do not follow on each other."""
    stored: Iterator[tuple[int, Any]] = enumerate(packets_of(container, stream))
    at = 0
    for run in plan.runs:
        if seek and run.start - at > _FAR:
            stored = _search(container, stream, packets, run.start)
        for at, packet in stored:
            deadline.check()
            if at >= run.start:
                if plan.whole is not None:
                    decoder.skip_frame = "DEFAULT" if plan.whole[at] else "NONREF"
                yield from decoder.decode(packet)
            if at + 1 >= run.stop:
                break
        yield from decoder.decode(None)
        decoder.flush_buffers()


def _search(container: Any, stream: Any, packets: Packets, wanted: int) -> Iterator[tuple[int, Any]]:
    """Numbered packets from a keyframe that is not after the wanted one."""
    container.seek(int(packets.starts[wanted]), stream=stream, backward=True)
    rest = packets_of(container, stream)
    for packet in rest:
        here = np.flatnonzero(packets.keys & (packets.starts == packet.pts))
        if len(here):
            if here[0] > wanted:
                break
            return enumerate(chain([packet], rest), int(here[0]))
    raise _LostPlace


def _smaller(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return width, height
    scale = min(1.0, short_side / min(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _animated_at(
    source: str | bytes, wanted: Sequence[int], times: list[float], deadline: Deadline, short_side: int | None
) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of an animated picture, by their numbers."""
    frames = enumerate(image for _, image in animation(source, deadline))
    at, image = next(frames)
    for time, number in zip(times, wanted, strict=True):
        while at < number:
            at, image = next(frames)
        width, height = _smaller(image.shape[1], image.shape[0], short_side)
        yield time, resized(image, height, width).permute(1, 2, 0).contiguous().numpy()
