"""Frames of what is still going on: a camera, a stream, a file that is being written, a pipe."""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from typing_extensions import Self

from aurora.errors import AuroraError, suggest
from aurora.inference.live_decoder import HEADER, REQUEST, STREAM_FORMATS, Request

log = logging.getLogger(__name__)
# The protocols that an address of each scheme may lead to. `file` is in none of them: a playlist from elsewhere never
# reads this machine's files.
PROTOCOLS = {"http": "http,https,tls,tcp,crypto", "https": "https,tls,tcp,crypto", "rtsp": "rtsp,rtp,udp,tcp",
             "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls", "udp": "udp", "tcp": "tcp"}
_START = ("import sys; sys.path[:] = sys.argv[1:]; from {module} import main; main()")
_SILENT_SECONDS = 60.0  # a decoder that says nothing for so long hangs, as in a camera's driver
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds


class LiveEvent(NamedTuple):
    """What happened to a source."""

    seconds: float  # since the first frame
    kind: Literal["opened", "lost", "resumed", "ended"]
    detail: str


class LiveSource:
    """(seconds, [H, W, 3] uint8 RGB, upright) of a live source, `fps` times per second, from the first frame on.

    A source is a camera (`/dev/video0`), an address (http, https: HLS, MPEG-TS, MJPEG and the like; rtsp, rtsps, udp,
    tcp), a file that another process may still write, or `-` for standard input. Frames of a stream that are not taken
    in time are dropped, the oldest first, so that the newest `queue_frames` are kept; of files and pipes none is.

    A stream that stays silent for `stall_seconds`, or breaks off, is opened again, after 0.5 s and then ever longer up
    to 10 s; its seconds go on by the wall clock. After `give_up_seconds` without a frame iterating ends with an
    AuroraError; a stream that cannot be opened at first is one at once. A file ends when it has not grown for
    `idle_seconds`. `on_event` is called from another thread. `close` ends it all from any thread.
    """

    live: ClassVar[bool] = True
    """A film of it grows with every frame, not with every chunk."""

    def __init__(
        self, source: str | os.PathLike[str], *, fps: float = 1.0, queue_frames: int = 16, stall_seconds: float = 20.0,
        give_up_seconds: float = 60.0, idle_seconds: float = 10.0, transport: Literal["tcp", "udp"] = "tcp",
        threads: int = 1, on_event: Callable[[LiveEvent], None] | None = None,
    ) -> None:
        _check(fps=fps, queue_frames=queue_frames, stall_seconds=stall_seconds, give_up_seconds=give_up_seconds,
               idle_seconds=idle_seconds, threads=threads)
        if fps > 1000:
            raise AuroraError(f"live source: fps must be at most 1000, not {fps}")
        if transport not in ("tcp", "udp"):
            raise AuroraError(f"live source: transport is tcp or udp, which RTSP servers send over, not {transport!r}")
        self._request = Request(**_opening(os.fspath(source), transport), fps=fps, stall_seconds=stall_seconds,
                                idle_seconds=idle_seconds, threads=threads)
        self._answer_seconds = (None if self._request.opens in ("file", "pipe") else
                                max(_SILENT_SECONDS, 2 * stall_seconds) + 1 / fps)
        self.name = label(os.fspath(source))
        self.give_up_seconds, self.on_event = give_up_seconds, on_event
        self.frames = self.dropped = self.damaged = self.reconnects = 0
        self.seconds = 0.0
        self._queue, self._most = deque[tuple[float, np.ndarray]](), queue_frames
        self._changed = threading.Condition()
        self._finite, self._ended, self._closed = self._request.opens in ("file", "pipe"), False, False
        self._began = self._arrived = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        if self._thread is not None or self._closed:
            raise AuroraError(f"{self.name} was watched already: what is live comes once; make another LiveSource")
        self._thread = threading.Thread(target=self._run, name="live source", daemon=True)
        self._thread.start()
        try:
            while (item := self._take()) is not None:
                yield item
            failed = None if self._closed else self._error
        finally:
            self.close()
        if failed is not None:
            raise failed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration, wherever it waits, and the decoding. Returns when both have ended."""
        with self._changed:
            self._closed = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _take(self) -> tuple[float, np.ndarray] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended or self._closed)
            if self._closed or not self._queue:
                return None
            item = self._queue.popleft()
            self._changed.notify_all()
            return item

    def _put(self, item: tuple[float, np.ndarray]) -> None:
        with self._changed:
            if self._finite:
                self._changed.wait_for(lambda: len(self._queue) < self._most or self._closed)
            elif len(self._queue) == self._most:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(item)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # raised again where the frames are taken
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _follow(self) -> None:
        """Opens the source, again and again where it is a stream, until it ends."""
        wait = _FIRST_WAIT
        while True:
            known = self.frames
            reason = self._connection()
            if reason is None or self._closed:
                self._say("ended", f"after {self.frames} frames")
                return
            if not self.frames or self._finite:
                raise AuroraError(f"{self.name} cannot be watched: {reason}{self._read_so_far()}")
            if self.frames > known:
                self._say("lost", reason)
                wait = _FIRST_WAIT
            left = self._arrived + self.give_up_seconds - time.monotonic()
            if left <= 0:
                raise AuroraError(f"{self.name} was lost and did not come back within {self.give_up_seconds:g} s: "
                                  f"{reason}{self._read_so_far()}")
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=min(wait, left))
            wait = min(2 * wait, _LONGEST_WAIT)

    def _connection(self) -> str | None:
        """Passes on the frames of one opening of the source. Why it broke off; None where it has ended."""
        with self._changed:
            if self._closed:
                return None
            process = self._process = _start(self._request)
        try:
            assert process.stdout is not None
            return self._pass_on(process.stdout.fileno())
        except TimeoutError:
            return "its decoder does not answer"
        finally:
            with process:
                process.kill()

    def _pass_on(self, pipe: int) -> str | None:
        again, offset = self.frames > 0, 0.0
        for seconds, content in _received(pipe, self._answer_seconds):
            if isinstance(content, dict):
                if content["event"] == "damaged":
                    self.damaged += 1
                elif content["event"] == "opened":
                    if again and content["finite"]:
                        return None  # what was live is a recording now, which begins anew
                    self._finite = content["finite"]
                    if not again:
                        self._say("opened", "{width}×{height} {codec} in {format}".format(**content))
                elif content["event"] == "end":
                    return None if self._finite else "the stream ended or broke off"
                else:
                    return str(content["reason"])
                continue
            now = time.monotonic()
            if not self.frames:
                self._began = now
            if again:
                offset, again = max(now - self._began, self.seconds + 1e-3) - seconds, False
                self.reconnects += 1
                self.seconds = offset
                self._say("resumed", f"{now - self._arrived:.1f} s after the last frame")
            self.seconds, self._arrived = seconds + offset, now
            self.frames += 1
            self._put((self.seconds, content))
        return "its decoder crashed"

    def _say(self, kind: Literal["opened", "lost", "resumed", "ended"], detail: str) -> None:
        if self.on_event is not None:
            self.on_event(LiveEvent(self.seconds, kind, detail))
        else:
            log.log(logging.WARNING if kind == "lost" else logging.INFO, "%s %s at %.1f s: %s", self.name, kind,
                    self.seconds, detail)

    def _read_so_far(self) -> str:
        return f"; {self.frames} frames were read, up to {self.seconds:.1f} s" if self.frames else ""


def label(source: str) -> str:
    """How messages name a source: an address without user and password."""
    scheme, mark, rest = source.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if mark else source


def _check(**numbers: float) -> None:
    for name, given in numbers.items():
        whole = name in ("queue_frames", "threads")
        if not given > 0 or given == float("inf") or (whole and not isinstance(given, int)):
            raise AuroraError(f"live source: {name} must be a {'whole ' if whole else ''}number above 0, not {given!r}")


def _opening(source: str, transport: str) -> dict[str, Any]:
    """How a source is opened. AuroraError for what is none."""
    scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    if scheme:
        if scheme not in PROTOCOLS:
            raise AuroraError(f"{label(source)}: a live source is not opened by {scheme!r}."
                              f"{suggest(scheme, sorted(PROTOCOLS))}")
        options = {"protocol_whitelist": PROTOCOLS[scheme], "format_whitelist": ",".join(STREAM_FORMATS)}
        return {"source": source, "opens": "url", "paced": scheme.startswith("http"),
                "options": options | _OPTIONS.get(scheme, {}) | _rtsp(scheme, transport)}
    if source == "-":
        return {"source": source, "opens": "pipe"}
    path = Path(source).resolve()
    if path.is_char_device():
        if not path.name.startswith("video"):
            raise AuroraError(f"{source} is a device, but not a camera such as /dev/video0")
        return {"source": str(path), "opens": "device", "format": "v4l2"}
    if path.is_fifo():
        return {"source": str(path), "opens": "pipe"}
    if not path.is_file():
        raise AuroraError(f"{source}: no such file, camera or address to watch; give one such as /dev/video0, "
                          "rtsp://HOST/PATH or https://HOST/PATH.m3u8, a file, or - for standard input")
    return {"source": str(path), "opens": "file"}


# The newest segment first: what has been shown already is not live. A lost part of a download is asked for again.
_HTTP = {"live_start_index": "-1", "reconnect": "1", "reconnect_delay_max": "5"}
_OPTIONS = {"http": _HTTP, "https": _HTTP, "udp": {"overrun_nonfatal": "1"}}


def _rtsp(scheme: str, transport: str) -> dict[str, str]:
    return {"rtsp_transport": transport} if scheme.startswith("rtsp") else {}


def _start(request: Request) -> "subprocess.Popen[bytes]":
    # Not multiprocessing, which would run the caller's script again. A session of its own, because ^C is for the one
    # who watches.
    command = [sys.executable, "-c", _START.format(module=Request.__module__), *sys.path]
    return subprocess.Popen(command, stdin=None if request.source == "-" else subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                            env={**os.environ, REQUEST: json.dumps(asdict(request))})


def _received(pipe: int, most_seconds: float | None) -> Iterator[tuple[float, dict[str, Any] | np.ndarray]]:
    """Messages and frames as they come, until the process is gone. TimeoutError when there is none for so long."""
    while (header := _exactly(pipe, HEADER.size, most_seconds)) is not None:
        seconds, height, width = HEADER.unpack(header)
        content = _exactly(pipe, 3 * height * width or width, most_seconds)
        if content is None:
            return
        yield seconds, (np.frombuffer(content, np.uint8).reshape(height, width, 3) if height else json.loads(content))


def _exactly(pipe: int, size: int, most_seconds: float | None) -> bytearray | None:
    content, at, ready = bytearray(size), 0, select.poll()
    ready.register(pipe, select.POLLIN)
    while at < size:
        if not ready.poll(None if most_seconds is None else 1000 * most_seconds):
            raise TimeoutError
        count = os.readv(pipe, [memoryview(content)[at:]])
        if count == 0:
            return None
        at += count
    return content
