"""Opening a video file: only what holds its frames itself, with every fault of FFmpeg as an AuroraError."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import av
import av.error
import av.logging
from annotated_types import Ge, Le

from aurora.errors import AuroraError
from aurora.images import MAX_PIXELS

# Playlists (hls, concat, dash) would open whatever they name, so only files that hold their frames are opened.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg"
TIMEOUT_SECONDS = 600.0
Threads = Annotated[int, Ge(1), Le(64)]
_decoded_in: set[int] = set()


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
