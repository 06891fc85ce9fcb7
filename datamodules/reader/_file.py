"""Video files: opened only where they hold their frames themselves, with every fault of FFmpeg as an AuroraError, and
measured from their packets: when frames are shown, and how large they are.

Headers are not believed: frame counts are 0 in webm and MPEG-TS, durations include the audio. Only packets are read
for measuring, so that a long video is measured in a fraction of the time of decoding it, and in 11 bytes per frame.
"""

from __future__ import annotations

import io
import os
import re
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import av
import av.error
import av.logging
import numpy as np
from annotated_types import Ge, Le

from aurora.errors import AuroraError
from aurora.images import MAX_PIXELS

# Playlists (hls, concat, dash) would open whatever they name, so only files that hold their frames are opened.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg"
TIMEOUT_SECONDS = 600.0
Threads = Annotated[int, Ge(1), Le(64)]
_decoded_in: set[int] = set()
# In these, a frame shown after a keyframe needs nothing from before it. In H.264 only an IDR picture promises that.
_CLEAN = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores")
_ORDINARY = ("mp4", "matroska")  # where a file has a table of its keyframes, and decoders agree on times
MAX_FRAMES = 4_000_000
MAX_SECONDS = 48 * 3600.0
_IDR = 5
_KEPT = 4
_scanned: OrderedDict[tuple[str, int, int], Packets] = OrderedDict()


class Deadline:
    """How long the work on one video may take. While a caller has a frame in hand, the clock stands still."""

    def __init__(self, seconds: float | None, source: str | bytes) -> None:
        self.seconds, self.source = seconds, source
        self._left = float("inf") if seconds is None else seconds
        self._since = time.perf_counter()

    def check(self) -> None:
        """AuroraError once the time is used up."""
        if time.perf_counter() - self._since > self._left:
            raise AuroraError(f"{label(self.source)} took longer than {self.seconds:g} s to read; a larger "
                              "reader.timeout_seconds allows more")

    def timed(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The same frames; what happens between two of them is not counted."""
        for frame in frames:
            self._left -= time.perf_counter() - self._since
            yield frame
            self._since = time.perf_counter()
            self.check()


def label(source: str | bytes) -> str:
    """How an error names a source."""
    return repr(source) if isinstance(source, str) else f"a video of {len(source)} bytes"


@contextmanager
def open_video(source: str | bytes, *, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """An open container and its video stream. Whatever goes wrong while they are used is one AuroraError."""
    _decoded_in.add(os.getpid())
    if isinstance(source, str) and not Path(source).is_file():
        raise AuroraError(f"no video file {source!r}")
    # An absolute path cannot be taken for a protocol such as concat: or http:.
    file = str(Path(source).resolve()) if isinstance(source, str) else io.BytesIO(source)
    try:
        # A title in another encoding than UTF-8 is no reason to refuse a video.
        with av.open(file, options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
                     metadata_errors="replace") as container:
            stream = _video_stream(container, source)
            _prepare(stream, threads, source)
            yield container, stream
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AuroraError(f"{label(source)} cannot be read as a video: {reason}") from error


def decoded_here() -> bool:
    """Whether this process has opened a video: then a fork of it is not safe to decode in."""
    return os.getpid() in _decoded_in


def _video_stream(container: Any, source: str | bytes) -> Any:
    # A cover picture inside a music file is a video stream of one attached picture.
    streams = [stream for stream in container.streams.video
               if not stream.disposition & type(stream.disposition).attached_pic]
    if not container.streams.video and not container.streams.audio:
        raise AuroraError(f"{label(source)} cannot be read as a video: it holds neither picture nor sound and may be "
                          "truncated")
    if not streams:
        raise AuroraError(f"{label(source)} has no video stream")
    return streams[0]


def _prepare(stream: Any, threads: int, source: str | bytes) -> None:
    if stream.codec_context is None:
        raise AuroraError(f"{label(source)} cannot be read as a video: FFmpeg has no decoder for it")
    if stream.width * stream.height > MAX_PIXELS:
        raise AuroraError(f"{label(source)} has frames of {stream.width}×{stream.height} pixels, which are more than "
                          f"{MAX_PIXELS}")
    if threads > 1:
        # FFmpeg's threads would wait forever for Python's lock to report to a logger of Python's.
        av.logging.set_level(None)
    # Frames in parallel: most files have one slice per frame. A single thread starts no other.
    stream.thread_type = "FRAME" if threads > 1 else "SLICE"
    stream.thread_count = threads
    # A stream may change its size after the header.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}


class Shape(NamedTuple):
    """A frame as it is stored, by how many degrees it is turned to stand upright, and whether it is two fields."""

    height: int
    width: int
    rotation: int
    interlaced: bool


def stored_shape(source: str | bytes) -> Shape:
    """The shape of the first frame. AuroraError when it cannot be decoded."""
    with open_video(source) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise AuroraError(f"{label(source)} holds no frame that can be decoded")
        return Shape(frame.height, frame.width, frame.rotation, frame.interlaced_frame)


def video_shape(source: str | bytes) -> tuple[int, int]:
    """Height and width of the first frame, upright. AuroraError when it cannot be decoded."""
    height, width, rotation, _ = stored_shape(source)
    return (width, height) if rotation % 180 else (height, width)


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
