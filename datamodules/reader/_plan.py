"""Which packets are decoded for some moments: a pure function of what the packets say.

Shape letters: P packets in the order of the file, W wanted frames in the order of time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aurora.interfaces import Sampling

from ._clip import Packets
from ._sampling import sample_times


class Run(NamedTuple):
    """Packets [begin, end) that are decoded one after the other, the first of which needs nothing from before it."""

    begin: int
    end: int


class Plan(NamedTuple):
    """What is shown at every moment, and how to come by it."""

    times: list[float]  # seconds after the first frame
    ticks: list[int]  # the frame of a moment is the last one that begins by then ...
    floors: list[int]  # ... and where it begins before that, it was not decoded
    runs: list[Run]
    whole: np.ndarray | None  # [P] bool: others may go when no frame refers to them; none: nothing may go


def moments(packets: Packets, sampling: Sampling, source: str | bytes) -> list[float]:
    """The moments of a checked sampling, in seconds after the first frame."""
    clip = packets.within(sampling.start, sampling.stop, source)
    return sample_times(sampling, clip.duration, clip.span)


def shown_at(packets: Packets, times: list[float]) -> np.ndarray:
    """[W] int64: the number of the packet whose frame is shown at each moment, the last one for ever."""
    shown = np.flatnonzero(packets.shown)
    order = shown[np.argsort(packets.starts[shown], kind="stable")]
    starts = packets.starts[order] * packets.tick
    # Half a tick, because a timestamp in milliseconds can lie just after the moment it stands for.
    until = starts[0] + np.array(times) + packets.tick / 2
    return np.asarray(order[np.maximum(np.searchsorted(starts, until, side="right") - 1, 0)])


def plan(packets: Packets, times: list[float]) -> Plan:
    """The cheapest way to the frames of some moments that cannot change them.

    Of every group of pictures that holds a wanted frame the packets up to that frame; in H.264 without the frames that
    no other refers to. Where packets do not say when they are shown, everything.
    """
    wanted, first = shown_at(packets, times), int(packets.starts[packets.shown].min())
    if not packets.whole:
        ticks = np.floor((first * packets.tick + np.array(times)) / packets.tick + 0.5).astype(np.int64)
        return Plan(times, ticks.tolist(), [first] * len(times), [Run(0, len(packets.starts))], None)
    begins = _begins(packets, wanted)
    # A picture may be two packets, one per field: the neighbours of a wanted one are always decoded with it.
    ends = np.minimum(wanted + 2, len(packets.starts))
    floors = np.maximum(packets.starts[begins], first)
    return Plan(times, packets.starts[wanted].tolist(), np.minimum(floors, packets.starts[wanted]).tolist(),
                _joined(begins, ends), _wholly(packets, wanted) if packets.codec == "h264" else None)


def _begins(packets: Packets, wanted: np.ndarray) -> np.ndarray:
    """[W] int64: the last keyframe before each wanted packet that is not shown after it, or the beginning."""
    # Reading on from the beginning is always right, also when the first packet is no such keyframe.
    keys = np.concatenate([[0], np.flatnonzero(packets.keys)])
    at = np.searchsorted(keys, wanted, side="right") - 1
    # A frame that is shown before the keyframe it follows may need the frames before that one.
    leading = packets.starts[keys[at]] > packets.starts[wanted]
    return np.asarray(keys[np.maximum(at - leading, 0)])


def _joined(begins: np.ndarray, ends: np.ndarray) -> list[Run]:
    """Runs in the order of the file; those that overlap or touch are one."""
    runs: list[Run] = []
    for begin, end in sorted(zip(begins.tolist(), ends.tolist(), strict=True)):
        if runs and begin <= runs[-1].end:
            runs[-1] = Run(runs[-1].begin, max(end, runs[-1].end))
        else:
            runs.append(Run(begin, end))
    return runs


def _wholly(packets: Packets, wanted: np.ndarray) -> np.ndarray:
    """[P] bool: wanted packets and their neighbours."""
    whole = np.zeros(len(packets.starts), bool)
    for shift in (-1, 0, 1):
        whole[np.clip(wanted + shift, 0, len(whole) - 1)] = True
    return whole
