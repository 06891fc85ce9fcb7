"""Video files: opened only where they hold their frames themselves, and measured from their packets, in a fraction of
the time of decoding and in 20 bytes per frame.

Headers are not believed: frame counts are 0 in webm and MPEG-TS, durations include the audio. Of animated pictures
(GIF, PNG, WebP, AVIF) the frames count as packets.
"""

import io
import os
import re
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import av
import av.error
import av.logging
import numpy as np
from annotated_types import Ge, Le

from aurora.errors import AuroraError
from aurora.frames import square_size, turn
from aurora.images import MAX_PIXELS
from aurora.media import DEMUXERS, media_type

from ._deadline import Deadline, label
from ._frame import animation

TIMEOUT_SECONDS = 600.0
Threads = Annotated[int, Ge(1), Le(64)]
_decoded_in: set[int] = set()
# In these, a frame shown after a keyframe needs nothing from before it. In H.264 only an IDR picture promises that.
_CLEAN = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores")
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders do not read what is transparent
_SEGMENT = b"\x18\x53\x80\x67"  # begins the content of a Matroska file
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_UNKNOWN = (1 << 32) - 1
_ROUNDING_SECONDS = 0.25
_UNTIMED = -(1 << 62)
_NOISE = 1e-6  # seconds by which floats may be wrong
_PEEK = 10_000  # packets that are read to tell films from covers
_ORDINARY = ("mp4", "matroska")  # where a file has a table of its keyframes, and decoders agree on times
MAX_FRAMES = 4_000_000
MAX_SECONDS = 48 * 3600.0
_IDR = 5
_KEPT = 4
_scanned: "OrderedDict[tuple[str, int, int], Packets]" = OrderedDict()


@contextmanager
def open_video(source: str | bytes, *, threads: int = 1) -> Iterator[tuple[Any, Any, Any]]:
    """An open container, its video stream and a decoder. Whatever goes wrong while they are used is one AuroraError."""
    _decoded_in.add(os.getpid())
    try:
        with _opened(source) as container:
            streams = _video_streams(container, source)
            stream = streams[0] if len(streams) == 1 else container.streams[_film(source, streams)]
            yield container, stream, _decoder(stream, threads, source)
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AuroraError(f"{label(source)} cannot be read as a video: {reason}") from error


def _demuxer(source: str | bytes) -> str | None:
    """FFmpeg's name for the container of a video; None for an animated picture. AuroraError for anything else."""
    if isinstance(source, str) and not Path(source).is_file():
        raise AuroraError(f"no video file {source!r}")
    try:
        found = media_type(source)
    except AuroraError as error:
        raise AuroraError(f"{label(source)} cannot be read as a video: {error}") from error
    if not found.moving:
        raise AuroraError(f"{label(source)} cannot be read as a video: it is a still picture ({found.extension})")
    return DEMUXERS.get(found.extension)


def _opened(source: str | bytes) -> Any:
    # An absolute path cannot be taken for a protocol such as concat: or http:.
    file = str(Path(source).resolve()) if isinstance(source, str) else io.BytesIO(source)
    # A title in another encoding than UTF-8 is no reason to refuse a video.
    return av.open(file, format=_demuxer(source), options={"protocol_whitelist": "file"}, metadata_errors="replace")


def decoded_here() -> bool:
    """Whether this process has opened a video: then a fork of it is not safe to decode in."""
    return os.getpid() in _decoded_in


def _video_streams(container: Any, source: str | bytes) -> list[Any]:
    # A cover picture inside a music file is a video stream of one attached picture.
    streams = [stream for stream in container.streams.video
               if not stream.disposition & type(stream.disposition).attached_pic]
    if not container.streams.video and not container.streams.audio:
        raise AuroraError(f"{label(source)} cannot be read as a video: it holds neither picture nor sound and may be "
                          "truncated")
    if not streams:
        raise AuroraError(f"{label(source)} has no video stream")
    return streams


def _film(source: str | bytes, streams: Sequence[Any]) -> int:
    """The index of the stream that is meant: not a cover, which has one frame, and of films the default one."""
    packets = Counter[int]()
    with _opened(source) as container:
        for packet in islice(container.demux(*container.streams.video), _PEEK):
            packets[packet.stream_index] += packet.size > 0
            if min(packets[stream.index] for stream in streams) > 1:
                break
    return int(min(streams, key=lambda stream: (
        packets[stream.index] < 2, not stream.disposition & type(stream.disposition).default)).index)


def _decoder(stream: Any, threads: int, source: str | bytes) -> Any:
    decoder = stream.codec_context
    if decoder is None:
        raise AuroraError(f"{label(source)} cannot be read as a video: FFmpeg has no decoder for it")
    width, height = square_size(stream, stream)
    if width * height > MAX_PIXELS:
        raise AuroraError(f"{label(source)} has frames of {width}×{height} pixels, which are more than {MAX_PIXELS}")
    if threads > 1:
        # FFmpeg's threads would wait forever for Python's lock to report to a logger of Python's.
        av.logging.set_level(None)
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in _WITH_ALPHA:
        decoder = av.CodecContext.create(_WITH_ALPHA[decoder.name], "r")
    # Frames in parallel: most files have one slice per frame. A single thread starts no other.
    decoder.thread_type = "FRAME" if threads > 1 else "SLICE"
    decoder.thread_count = threads
    # A stream may change its size after the header.
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    return decoder


def first_frame(source: str | bytes) -> tuple[Any, int, int]:
    """The first frame of a video, and its width and height as square pixels. AuroraError when it cannot be decoded."""
    with open_video(source) as (container, stream, decoder):
        frame = next((frame for packet in container.demux(stream) for frame in decoder.decode(packet)), None)
        if frame is None:
            raise AuroraError(f"{label(source)} holds no frame that can be decoded")
        return frame, *square_size(frame, stream)


def video_shape(source: str | bytes) -> tuple[int, int]:
    """Height and width of the first frame, upright and of square pixels. AuroraError when it cannot be decoded."""
    if _demuxer(source) is None:
        height, width, _ = next(animation(source, Deadline(TIMEOUT_SECONDS, source)))[1].shape
        return height, width
    frame, width, height = first_frame(source)
    transposed, *_ = turn(frame)
    return (width, height) if transposed else (height, width)


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

    def begins(self, start: float, end: float) -> np.ndarray:
        """[F] seconds after the first frame at which those in between are shown; the one that is already there begins
        at `start`."""
        begins = np.sort(self.starts[self.shown]) * self.tick - self.clip.first
        return np.append(start, begins[(begins > start + _NOISE) & (begins < end - _NOISE)])

    def within(self, start: float, stop: float | None, source: str | bytes) -> Clip:
        """What is shown from `start` to `stop` seconds after the first frame; AuroraError when nothing is."""
        clip = self.clip
        end = clip.duration if stop is None else min(stop, clip.duration)
        if end - start < _NOISE:
            raise AuroraError(f"{label(source)} lasts {clip.duration:.2f} s; there is nothing from {start:g} s to "
                              f"{'its end' if stop is None else f'{stop:g} s'}")
        begins = self.begins(start, end)
        return Clip(clip.first + start, clip.first + float(begins[-1]), end - start, len(begins))


def measure(source: str | bytes, start: float = 0.0, stop: float | None = None) -> Clip:
    """What `Packets.within` says of a file. AuroraError for anything but a whole video."""
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
    untimed = "matroska" in container.format.name  # of which FFmpeg does not tell the negative times
    for packet in container.demux(stream):
        if packet.size and (untimed or packet.pts is not None or packet.dts is not None):
            yield packet


def _scan(source: str | bytes, deadline: Deadline) -> Packets:
    if _demuxer(source) is None:
        lasting = np.array([milliseconds for milliseconds, _ in animation(source, deadline)])
        starts, every = np.round(np.cumsum(lasting) - lasting).astype(np.int64), np.ones(len(lasting), bool)
        packets = Packets(starts, every, every, 1e-3, float(lasting[-1]) / 1e3, "animation", True, False, False)
    else:
        with open_video(source) as (container, stream, _):
            _check_length(container, stream, source)
            packets = _read(container, stream, source, deadline)
    if packets.clip.duration > MAX_SECONDS:
        raise AuroraError(f"{label(source)} lasts {packets.clip.duration:.0f} s, which is more than {MAX_SECONDS:.0f}")
    return packets


def _read(container: Any, stream: Any, source: str | bytes, deadline: Deadline) -> Packets:
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    starts, lasting = array("q"), array("q")  # ticks
    keys, flagged, hidden = array("b"), array("b"), array("b")
    whole, clean = True, codec in _CLEAN
    for number, packet in enumerate(packets_of(container, stream)):
        deadline.check()
        if packet.is_corrupt:
            raise AuroraError(f"{label(source)} is truncated or damaged at frame {number}")
        if number >= MAX_FRAMES:
            raise AuroraError(f"{label(source)} has more than {MAX_FRAMES} frames")
        start = packet.dts if packet.pts is None else packet.pts
        whole &= packet.pts is not None
        starts.append(_UNTIMED if start is None else start)
        lasting.append(packet.duration or 0)
        flagged.append(packet.is_keyframe)
        hidden.append(packet.is_discard)
        keys.append(packet.is_keyframe and clean and (codec != "h264" or _is_idr(packet, extradata)))
    times, tick, form = np.frombuffer(starts, np.int64), float(stream.time_base), container.format.name
    untimed = times == _UNTIMED
    if 1 not in flagged or untimed.all():
        raise AuroraError(f"{label(source)} holds no video frame")
    first = flagged.index(1)
    if untimed.any():  # before the first time, in some order
        times[untimed] = times[~untimed].min() - np.arange(untimed.sum(), 0, -1) * max(1, lasting[0])
    # Frames that are shown before the first keyframe were cut off from what they need. An edit list may begin with a
    # keyframe that is not shown itself.
    shown = (np.arange(len(times)) >= first) & ~np.frombuffer(hidden, bool)
    shown &= bool(hidden[first]) | (times >= times[first])
    if not shown.any():
        raise AuroraError(f"{label(source)} holds no video frame")
    last = int(np.flatnonzero(shown)[times[shown].argmax()])
    # AVI stores frames without times, and FFmpeg's guesses are wrong for frames that are stored in another order.
    counted = form == "avi" or bool(untimed.any())
    return Packets(
        times, np.frombuffer(keys, bool), shown, tick,
        _tail(container, stream, times, int(times[last]), lasting[last]) * tick, codec,
        whole and not counted and len(np.unique(times)) == len(times), counted,
        any(known in form for known in _ORDINARY) and len(container.streams.video) == 1 and bool(shown.all())
        and bool(flagged[0]) and keys == flagged)


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


def _tail(container: Any, stream: Any, starts: np.ndarray, last: int, tail: int) -> int:
    """Ticks for which the frame that begins at `last` is shown, whose packet says `tail`."""
    form = container.format.name
    if "mp4" in form and (np.diff(starts) < 0).any() and stream.duration is not None:
        # With B-frames the packet says how far the next one is in the order of decoding; the track's end is right.
        until = int(stream.start_time or 0) + stream.duration
        return until - last if until > last else tail
    if ("matroska" in form or "flv" in form) and len(container.streams) == 1 and container.duration is not None:
        # Packets need not say how long they last, and the header tells when the last one ends.
        until = int(container.duration / av.time_base / float(stream.time_base))
        return until - last if until - last > tail + _ROUNDING_SECONDS / float(stream.time_base) else tail
    return tail


def _check_length(container: Any, stream: Any, source: str | bytes) -> None:
    """AuroraError when a file's own structure reaches behind its end; what headers say of seconds is not asked."""
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    form, needed = container.format.name, 0
    if "mp4" in form:
        # Frames lie in the order of the table, give or take the sound between them.
        entries = stream.index_entries
        last = [entries[at] for at in range(max(0, len(entries) - 64), len(entries))]
        needed = max((entry.pos + entry.size for entry in last), default=0)
    elif form in ("avi", "asf", "flv") or "matroska" in form:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            needed = _needed(form, file, size)
    if needed > size:
        raise AuroraError(f"{label(source)} is truncated: it has {size} bytes, its frames need {needed}")


def _needed(form: str, file: BinaryIO, size: int) -> int:
    """The bytes that a container says it has, 0 where it does not."""
    head = file.read(1 << 16)
    if form == "avi":
        at = head.find(b"movi") - 4  # an index may follow
        length = int.from_bytes(head[at:at + 4], "little")
        return at + 4 + length if at > 0 and length < _UNKNOWN else 0
    if form == "asf":
        at = head.find(_ASF_DATA)
        return at + int.from_bytes(head[at + 16:at + 24], "little") if at >= 0 else 0
    if form == "flv":
        # The last four bytes are the size of the last tag, which begins with its kind and the size of its content.
        file.seek(max(0, size - 4))
        tag = int.from_bytes(file.read(4), "big")
        file.seek(max(0, size - 4 - tag))
        return size if int.from_bytes(file.read(4)[1:], "big") + 11 == tag else size + 1
    rest = head.partition(_SEGMENT)[2]
    if not rest:
        return 0
    width = 9 - rest[0].bit_length()  # of an integer that begins with as many zeros as it has further bytes
    length, unknown = int.from_bytes(rest[:width], "big") & (1 << 7 * width) - 1, (1 << 7 * width) - 1
    return 0 if length == unknown else len(head) - len(rest) + width + length
