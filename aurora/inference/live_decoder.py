"""The process that decodes one live source: it writes the sampled frames to standard output for `LiveSource`.

FFmpeg may wait where nothing can wake it. A process can be ended at any moment, and takes its memory and its crashes
with it.
"""

import json
import math
import os
import select
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple

import av
import av.error
import av.logging

from aurora.errors import AuroraError
from aurora.frames import square_size, upright_rgb
from aurora.images import MAX_PIXELS
from aurora.media import DEMUXERS, media_type

REQUEST = "AURORA_LIVE_REQUEST"
"""The environment variable with a request as JSON: unlike arguments, other users cannot read it, and URLs hold
passwords."""
HEADER = struct.Struct("<dII")
"""Before every frame: seconds, height, width. With a height of 0, `width` bytes of a JSON object follow instead."""
# without these, files and playlists are refused that would open further files
STREAM_FORMATS = ("hls", "mp4", "mpegts", "matroska", "flv", "mpjpeg", "mjpeg", "asf", "ogg", "rtsp", "sdp", "rtp",
                  "aac", "mp3", "ac3", "eac3", "webvtt")
_UNTIMED = ("mpjpeg", "mjpeg")  # FFmpeg makes up 25 frames per second
_HEAD_BYTES = 4096
_FRAGMENTED = ". An mp4 has to be fragmented while it is written: ffmpeg -movflags frag_keyframe+empty_moov"
_POLL_SECONDS = 0.05
# Microseconds and frames. By itself FFmpeg waits for five seconds of a stream before it gives the first frame.
_PROBED = {"analyzeduration": "1000000", "fpsprobesize": "0"}
_LEAP_SECONDS = 10.0
_SMALLEST_SIDE = 384  # pixels, of the variants of a stream: no vision encoder sees more
_NOISE = 1e-6  # seconds by which floats may be wrong


@dataclass(frozen=True)
class Request:
    """What is opened, and which of its frames are wanted."""

    source: str
    opens: Literal["url", "device", "file", "pipe"]
    fps: float
    stall_seconds: float
    idle_seconds: float
    threads: int = 1
    format: str | None = None
    paced: bool = False  # it may be read faster than it is shown
    options: Mapping[str, str] = field(default_factory=dict)


class Timed(NamedTuple):
    """A decoded frame."""

    seconds: float  # since the first one
    lasts: float  # seconds, as far as its packet says
    frame: Any


class Output:
    """Writes messages and frames."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def message(self, **content: object) -> None:
        """One JSON object."""
        raw = json.dumps(content).encode()
        self.file.write(HEADER.pack(0.0, 0, len(raw)) + raw)
        self.file.flush()

    def frame(self, seconds: float, frame: Any, size: tuple[int, int]) -> None:
        """One frame, upright and as RGB, scaled to a width and height."""
        pixels = upright_rgb(frame, *size)
        self.file.write(HEADER.pack(seconds, *pixels.shape[:2]))
        self.file.write(pixels.data)
        self.file.flush()


def main() -> None:
    """Decodes what the environment asks for until its end, which is the last message."""
    request = Request(**json.loads(os.environ.pop(REQUEST)))
    av.logging.set_level(None)
    with os.fdopen(os.dup(1), "wb") as file:
        os.dup2(2, 1)  # nothing else may be written between frames
        output = Output(file)
        try:
            decode(request, output)
        except BrokenPipeError:
            os._exit(0)  # whoever watched is gone; closing the file would fail again
        except (AuroraError, OSError, EOFError, av.error.FFmpegError) as error:
            # FFmpeg's own text names the address, with its password
            output.message(event="error", reason=getattr(error, "strerror", None) or str(error))
        else:
            output.message(event="end")


def decode(request: Request, output: Output) -> None:
    """Writes what was opened, and the sampled frames of it. AuroraError, or FFmpeg's OSError, where it breaks off."""
    with _opened(request) as container:
        stream, form, size = _chosen(container), container.format.name, None
        finite = request.opens in ("file", "pipe") or bool(container.duration and container.duration > 0)
        _prepare(stream.codec_context, request.threads)
        frames = _timed(_decoded(container, stream, request, output), form in _UNTIMED, live=not finite)
        sampled = sample_file(frames, request.fps) if finite else sample_live(frames, request.fps)
        for seconds, frame in _paced(sampled) if request.paced and not finite else sampled:
            if size is None:
                output.message(event="opened", width=frame.width, height=frame.height, codec=stream.codec_context.name,
                               format=form, finite=finite)
                size = square_size(frame, stream)  # a stream that changes its size keeps that of its first frame
            output.frame(seconds, frame, size)
        if size is None:
            raise AuroraError("it holds no frame that can be decoded" + (_FRAGMENTED if "mp4" in form else ""))


def _prepare(decoder: Any, threads: int) -> None:
    # Frames in parallel: most streams have one slice per frame. A single thread starts no other.
    decoder.thread_type, decoder.thread_count = "FRAME" if threads > 1 else "SLICE", threads
    decoder.options = {"max_pixels": str(MAX_PIXELS)}


@contextmanager
def _opened(request: Request) -> Iterator[Any]:
    if request.opens in ("url", "device"):
        seconds = request.stall_seconds
        try:
            with av.open(request.source, format=request.format, options={**_PROBED, **request.options},
                         timeout=(seconds, seconds), metadata_errors="replace") as container:
                yield container
        except av.error.ExitError:
            raise AuroraError(f"nothing came for {seconds:g} s") from None
        return
    with open(0 if request.source == "-" else request.source, "rb", buffering=0) as file:
        source = _Source(file.read if request.opens == "pipe" else _growing(file, request))
        demuxer = source.demuxer()
        # an mp4 that is finished may have its table at its end
        whole = request.opens == "file" and time.time() - os.fstat(file.fileno()).st_mtime >= request.idle_seconds
        with av.open(request.source if whole else source, format=demuxer, metadata_errors="replace",
                     options={"protocol_whitelist": "file" if whole else "none", **_PROBED}) as container:
            yield container


class _Source:
    """What FFmpeg reads from: it cannot seek, so that it never asks for what is not there yet."""

    def __init__(self, more: Callable[[int], bytes | None]) -> None:
        self._more, self._first = more, b""

    def demuxer(self) -> str:
        """FFmpeg's name of the container, after as few bytes as tell it. AuroraError when it is no video."""
        while True:
            more = self._more(_HEAD_BYTES) if len(self._first) < _HEAD_BYTES else b""
            self._first += more or b""
            try:
                return DEMUXERS[media_type(self._first).extension]
            except KeyError:
                raise AuroraError("it is a picture, not a video") from None
            except AuroraError:
                if not more:
                    raise

    def read(self, size: int) -> bytes:
        """At least one byte, and none at the end."""
        first, self._first = self._first[:size], self._first[size:]
        return first or self._more(size) or b""


def _growing(file: Any, request: Request) -> Callable[[int], bytes]:
    """Reads a file that another process may still write: its end is where it has not grown for some seconds."""
    def read(size: int) -> bytes:
        since, idle = time.monotonic(), request.idle_seconds
        while not (more := file.read(size)):
            facts = os.fstat(file.fileno())
            if facts.st_size < file.tell():
                raise AuroraError("it was cut while it was watched")
            # its own time tells at once that a file is finished; it may come from another machine's clock
            if time.time() - facts.st_mtime >= idle or time.monotonic() - since >= idle:
                return b""
            select.select([], [], [], _POLL_SECONDS)
        return bytes(more)

    return read


def _chosen(container: Any) -> Any:
    """The stream that is decoded: of the same film in several sizes the smallest that is large enough. AuroraError."""
    streams = [stream for stream in container.streams.video
               if not stream.disposition & type(stream.disposition).attached_pic]
    if not streams:
        raise AuroraError("it has no video stream")
    sides = {stream.index: min(stream.width or 0, stream.height or 0) for stream in streams}
    large = [stream for stream in streams if sides[stream.index] >= _SMALLEST_SIDE]
    chosen = min(large, key=lambda stream: sides[stream.index]) if large else max(
        streams, key=lambda stream: sides[stream.index])
    for stream in container.streams:
        if stream.index != chosen.index:
            stream.discard = "ALL"  # a playlist's other variants are not downloaded
    if chosen.codec_context is None:
        raise AuroraError("FFmpeg has no decoder for it")
    return chosen


def _decoded(container: Any, stream: Any, request: Request, output: Output) -> Iterator[Any]:
    """All whole frames. What cannot be decoded is counted; AuroraError when packets come but no frame does."""
    decoder, since = stream.codec_context, time.monotonic()
    try:
        for packet in container.demux(stream):
            try:
                frames = decoder.decode(packet)
            except av.error.InvalidDataError:
                output.message(event="damaged")
                continue
            for frame in frames:
                if not frame.is_corrupt:
                    yield frame
                    since = time.monotonic()
            if request.opens in ("url", "device") and time.monotonic() - since > request.stall_seconds:
                raise AuroraError(f"it holds no frame that can be decoded for {request.stall_seconds:g} s")
    except av.error.InvalidDataError as error:
        # where the writer stopped in the middle of a frame
        if request.opens in ("url", "device"):
            raise AuroraError(f"it is damaged: {error.strerror}") from error


def _timed(frames: Iterable[Any], untimed: bool, *, live: bool) -> Iterator[Timed]:
    """The frames with seconds since the first one, which never go back. Where timestamps are missing or leap, the wall
    clock says how much time has passed; in files, the length of a frame."""
    zero, seconds, before, lasts = 0.0, -1.0, 0.0, 0.0
    for frame in frames:
        now, stamp = time.monotonic(), None if untimed or frame.pts is None else float(frame.pts * frame.time_base)
        known = float((frame.duration or 0) * (frame.time_base or 0))
        if seconds < 0:
            zero, seconds = stamp or 0.0, 0.0
        else:
            elapsed = now - before if live else lasts
            reached, most = (-1.0 if stamp is None else stamp - zero), seconds + elapsed + _LEAP_SECONDS
            if reached == seconds:
                continue  # shown at the same time as the one before
            if reached < seconds or (live and reached > most):
                reached = seconds + max(elapsed, 1e-3)
                zero = (stamp or 0.0) - reached
            reached = round(reached, 6)
            lasts, seconds = reached - seconds, reached
        before = now
        yield Timed(seconds, known or lasts, frame)


def sample_live(frames: Iterable[Timed], fps: float) -> Iterator[tuple[float, Any]]:
    """`fps` frames per second of a stream: the first one after every moment 0, 1/fps, ..., without waiting for
    another."""
    wanted = 0
    for seconds, _, frame in frames:
        if seconds * fps >= wanted - _NOISE:
            yield seconds, frame
            wanted = math.floor(seconds * fps + _NOISE) + 1


def sample_file(frames: Iterable[Timed], fps: float) -> Iterator[tuple[float, Any]]:
    """`fps` frames per second of a file, as the readers of finished files choose them: the frame that is shown at each
    moment 0, 1/fps, ..., until the last one ends."""
    number, shown = 0, None
    for timed in frames:
        # a timestamp in milliseconds may lie just after the moment that it stands for
        slack = min(1e-3, float(timed.frame.time_base or 0) / 2)
        while shown is not None and number / fps < timed.seconds - slack:
            yield number / fps, shown.frame
            number += 1
        shown = timed
    while shown is not None and number / fps < shown.seconds + shown.lasts - _NOISE:
        yield number / fps, shown.frame
        number += 1


def _paced(frames: Iterable[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
    """The frames no earlier than they are shown, which servers that send whole segments do not see to."""
    begin = time.monotonic()
    for seconds, frame in frames:
        early = begin + seconds - time.monotonic()
        if early > 0:
            time.sleep(early)
        else:
            begin -= early  # as a player that had to wait goes on from there
        yield seconds, frame
