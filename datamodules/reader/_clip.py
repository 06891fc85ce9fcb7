"""What a video file holds, measured from its packets: when its frames are shown, and how large they are.

Headers are not believed: frame counts are 0 in webm and MPEG-TS, durations include the audio. Only packets are read
here, so that a long video is measured in a fraction of the time of decoding it, and in constant memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np

from aurora.errors import AuroraError

# Playlists (hls, concat, dash) would open whatever they name, so only files that hold their frames are opened.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg"
_decoded_in: set[int] = set()


class Clip(NamedTuple):
    """Seconds are those of the container's clock; a video is timed from its first frame."""

    first: float  # when the first frame is shown
    last: float  # when the last frame is shown
    duration: float  # from the first frame's beginning to the last one's end
    frames: int
    tick: float  # the resolution of the timestamps

    @property
    def span(self) -> float:
        """Seconds from the first frame to the beginning of the last."""
        return self.last - self.first


def label(source: str | bytes) -> str:
    """How an error names a source."""
    return repr(source) if isinstance(source, str) else f"a video of {len(source)} bytes"


@contextmanager
def open_video(source: str | bytes) -> Iterator[tuple[Any, Any]]:
    """An open container and its video stream. Whatever goes wrong while they are used is one AuroraError."""
    _decoded_in.add(os.getpid())
    if isinstance(source, str) and not Path(source).is_file():
        raise AuroraError(f"no video file {source!r}")
    # An absolute path cannot be taken for a protocol such as concat: or http:.
    file = str(Path(source).resolve()) if isinstance(source, str) else io.BytesIO(source)
    try:
        with av.open(file, options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
            yield container, _video_stream(container, source)
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AuroraError(f"{label(source)} cannot be read as a video: {reason}") from error


def decoded_here() -> bool:
    """Whether this process has opened a video: then a fork of it is not safe to decode in."""
    return os.getpid() in _decoded_in


def measure(source: str | bytes) -> Clip:
    """The clip of a path or of the bytes of a file. AuroraError for anything but a whole video."""
    with open_video(source) as (container, stream):
        _check_length(container, stream, source)
        declared, tick = _declared(container), float(stream.time_base)
        first, last, tail, count = np.inf, -np.inf, 0.0, 0
        for start, length in _shown(container, stream, source):
            first, count = min(first, start), count + 1
            if start > last:
                last, tail = start, length
    if not count:
        raise AuroraError(f"{label(source)} holds no video frame")
    duration = last - first + (tail or ((last - first) / (count - 1) if count > 1 else tick))
    if declared is not None and declared > (first + duration) * 1.02 + 0.25:
        raise AuroraError(f"{label(source)} is truncated: its header promises {declared:.2f} s, "
                          f"it ends after {first + duration:.2f} s")
    return Clip(first, last, duration, count, tick)


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


def _shown(container: Any, stream: Any, source: str | bytes) -> Iterator[tuple[float, float]]:
    """(start, length) in seconds of every frame that a decoder will show, in the order of the file."""
    tick = float(stream.time_base)
    started, floor = False, -np.inf
    for number, packet in enumerate(container.demux(stream)):
        if packet.size == 0 or (packet.pts is None and packet.dts is None):
            continue
        if packet.is_corrupt:
            raise AuroraError(f"{label(source)} is truncated or damaged at frame {number}")
        start = float(packet.pts if packet.pts is not None else packet.dts) * tick
        if not started:
            if not packet.is_keyframe:
                continue  # cut from a stream: nothing can be decoded before a keyframe
            started, floor = True, -np.inf if packet.is_discard else start
        if not packet.is_discard and start >= floor:
            yield start, float(packet.duration or 0) * tick


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
