"""What a video file holds, measured from its packets: when its frames are shown, and how large they are.

Headers are not believed: frame counts are 0 in webm and MPEG-TS, durations include the audio. Only packets are read
here, so that a long video is measured in a fraction of the time of decoding it, and in 11 bytes per frame.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from aurora.errors import AuroraError

from ._file import TIMEOUT_SECONDS, Deadline, label, open_video

# In these, a frame shown after a keyframe needs nothing from before it. In H.264 only an IDR picture promises that.
_CLEAN = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores")
_ORDINARY = ("mp4", "matroska")  # where a file has a table of its keyframes, and decoders agree on times
MAX_FRAMES = 4_000_000
MAX_SECONDS = 48 * 3600.0
_IDR = 5
_KEPT = 4
_scanned: OrderedDict[tuple[str, int, int], Packets] = OrderedDict()


class Clip(NamedTuple):
    """A video, or a range of it. Seconds are those of the container's clock; a video is timed from its first frame."""

    first: float  # when the first frame is shown
    last: float  # when the last frame is shown
    duration: float  # from the first frame's beginning to the last one's end
    frames: int


@dataclass(frozen=True)
class Packets:
    """The packets of a video in the order of the file, which is that of decoding."""

    starts: np.ndarray  # [P] int64: ticks
    keys: np.ndarray  # [P] bool: what is shown from here on can be decoded from here on
    shown: np.ndarray  # [P] bool; others only help to decode
    tick: float  # seconds
    tail: float  # seconds that the last frame lasts
    codec: str
    whole: bool  # every packet says when it is shown, no two the same
    counted: bool  # the file says in which order frames come, but not when each of them is shown
    ordinary: bool  # mp4 or Matroska, one video, decodable from its first packet and every keyframe, all of it shown

    @property
    def clip(self) -> Clip:
        """The whole video."""
        shown = self.starts[self.shown]
        first, last = int(shown.min()) * self.tick, int(shown.max()) * self.tick
        tail = self.tail or ((last - first) / (len(shown) - 1) if len(shown) > 1 else self.tick)
        return Clip(first, last, last - first + tail, len(shown))

    def within(self, start: float, stop: float | None, source: str | bytes) -> Clip:
        """What is shown from `start` to `stop` seconds after the first frame, cut at the end of the video.

        AuroraError when nothing is.
        """
        clip = self.clip
        if start == 0 and stop is None:
            return clip
        end = clip.duration if stop is None else min(stop, clip.duration)
        # Less than a microsecond is float noise.
        if end - start < 1e-6:
            raise AuroraError(f"{label(source)} lasts {clip.duration:.2f} s; there is nothing from {start:g} s to "
                              f"{'its end' if stop is None else f'{stop:g} s'}")
        begins = self.starts[self.shown] * self.tick - clip.first
        inside = begins[(begins > start) & (begins < end)]
        # The frame that is already there when the range begins is one of it.
        return Clip(clip.first + start, clip.first + max(start, float(inside.max(initial=start))), end - start,
                    len(inside) + 1)


def measure(source: str | bytes, start: float = 0.0, stop: float | None = None) -> Clip:
    """The clip of a path or of the bytes of a file, or of a range of it: seconds after the first frame.

    AuroraError for anything but a whole video.
    """
    return scan(source, Deadline(TIMEOUT_SECONDS, source)).within(start, stop, source)


def scan(source: str | bytes, deadline: Deadline) -> Packets:
    """The packets of a whole video; those of the files that were scanned last are remembered. AuroraError."""
    if isinstance(source, bytes) or not Path(source).is_file():
        return _scan(source, deadline)
    facts = Path(source).stat()
    key = (str(Path(source).resolve()), facts.st_size, facts.st_mtime_ns)
    packets = _scanned.pop(key, None) or _scan(source, deadline)
    _scanned[key] = packets
    if len(_scanned) > _KEPT:
        _scanned.popitem(last=False)
    return packets


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Those packets that have content and a time: the ones that `Packets` numbers."""
    for packet in container.demux(stream):
        if packet.size and (packet.pts is not None or packet.dts is not None):
            yield packet


def _scan(source: str | bytes, deadline: Deadline) -> Packets:
    with open_video(source) as (container, stream):
        _check_length(container, stream, source)
        packets = _read(container, stream, source, deadline)
        if not packets.shown.any():
            raise AuroraError(f"{label(source)} holds no video frame")
        clip, declared = packets.clip, _declared(container)
    if declared is not None and declared > (clip.first + clip.duration) * 1.02 + 0.25:
        raise AuroraError(f"{label(source)} is truncated: its header promises {declared:.2f} s, "
                          f"it ends after {clip.first + clip.duration:.2f} s")
    if clip.duration > MAX_SECONDS:
        raise AuroraError(f"{label(source)} lasts {clip.duration:.0f} s, which is more than {MAX_SECONDS:.0f}")
    return packets


def _read(container: Any, stream: Any, source: str | bytes, deadline: Deadline) -> Packets:
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    starts, keys, shown, flagged = array("q"), array("b"), array("b"), array("b")
    floor, tail, last = None, 0, None  # ticks
    whole, clean = True, codec in _CLEAN
    for number, packet in enumerate(packets_of(container, stream)):
        deadline.check()
        if packet.is_corrupt:
            raise AuroraError(f"{label(source)} is truncated or damaged at frame {number}")
        if number >= MAX_FRAMES:
            raise AuroraError(f"{label(source)} has more than {MAX_FRAMES} frames")
        start = packet.dts if packet.pts is None else packet.pts
        whole &= packet.pts is not None
        if floor is None and packet.is_keyframe:
            # Frames that are shown before the first keyframe were cut off from what they need. An edit list may
            # begin with a keyframe that is not shown itself.
            floor = -(1 << 62) if packet.is_discard else start
        seen = floor is not None and not packet.is_discard and start >= floor
        starts.append(start)
        shown.append(seen)
        flagged.append(packet.is_keyframe)
        keys.append(packet.is_keyframe and clean and (codec != "h264" or _is_idr(packet, extradata)))
        if seen and (last is None or start > last):
            last, tail = start, packet.duration or 0
    times, tick = np.frombuffer(starts, np.int64), float(stream.time_base)
    form = container.format.name
    # AVI stores frames without times, and FFmpeg's guesses are wrong for frames that are stored in another order.
    counted = form == "avi"
    return Packets(
        times, np.frombuffer(keys, bool), np.frombuffer(shown, bool), tick, tail * tick, codec,
        whole and not counted and len(np.unique(times)) == len(times), counted,
        any(known in form for known in _ORDINARY) and len(container.streams.video) == 1 and all(shown)
        and bool(flagged and flagged[0]) and keys == flagged)


def _is_idr(packet: Any, extradata: bytes) -> bool:
    """Whether an H.264 packet begins an IDR picture: the kind of unit stands in five bits of its first byte."""
    data = bytes(packet)
    if extradata[:1] != b"\1":
        return any(data[match.end()] & 31 == _IDR for match in re.finditer(b"\0\0\1(?=.)", data, re.DOTALL))
    width, at = (extradata[4] & 3) + 1, 0  # of the length in front of every unit
    while at + width < len(data):
        if data[at + width] & 31 == _IDR:
            return True
        at += width + int.from_bytes(data[at:at + width], "big")
    return False


def _check_length(container: Any, stream: Any, source: str | bytes) -> None:
    """AuroraError when an mp4's table of frames points behind the end of the file."""
    if "mp4" in container.format.name:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        entries = stream.index_entries
        # Frames lie in the order of the table, give or take the sound between them.
        ends = [entries[at].pos + entries[at].size for at in range(max(0, len(entries) - 64), len(entries))]
        if max(ends, default=0) > size:
            raise AuroraError(f"{label(source)} is truncated: it has {size} bytes, its frames need {max(ends)}")


def _declared(container: Any) -> float | None:
    """The seconds that the header promises, where it speaks of the video stream: in files of that stream alone."""
    known = container.duration is not None and "mp4" not in container.format.name and len(container.streams) == 1
    return float(container.duration) / float(av.time_base) if known else None
