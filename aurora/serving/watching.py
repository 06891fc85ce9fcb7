"""Films that are being watched, each in a thread of its own: of files that clients uploaded, or of frames that they
send one by one."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import numpy as np

from aurora.errors import AuroraError
from aurora.inference.film import Film
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import file_hash
from aurora.interfaces import Sampling, Turn
from aurora.serving.answer import QueueFull
from aurora.serving.decode import DecodeLimits, frames
from aurora.serving.errors import ApiError, api_error
from aurora.serving.settings import Settings

Timed = tuple[float, np.ndarray]
FEED = 16
"""Frames of a live film that wait to be read."""
IDLE_SECONDS = 60.0
"""After which a live film that is sent nothing is saved and let go."""
SAVE_SECONDS = 5.0
"""How often a live film is saved: what a kill may lose."""


class Stopped(Exception):
    """Watching was told to end."""


class Watch:
    """One film while it is watched: asked like any other, it knows what was seen so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = "waiting"  # then watching, or live, and ready, failed or stopped
        self.film: Film | None = None
        self.total: int | None = None  # frames that there will be
        self.error: ApiError | None = None
        self.sha256: str | None = None  # of the video, if it is an uploaded file
        self.began = 0  # frames that had been seen before
        self.users = 0  # requests that wait for it
        self.job: Mapping[str, Any] = {}  # what a restart needs to watch it again
        self.done: Future[Film] = Future()
        self._stop = threading.Event()

    @property
    def frames(self) -> int:
        """Frames seen since the beginning."""
        return 0 if self.film is None else self.film.frames - self.began

    def stop(self) -> None:
        """Ends it after the chunk that is being read."""
        self._stop.set()

    def discard(self) -> None:
        """The same, and nothing of it is saved."""
        self._stop.set()

    def run(self, films: Iterator[Film], finish: Callable[[Film], None], status: str = "watching") -> None:
        """Watches to the end, then lets the film be saved. Never raises: `done` holds the film or the ApiError."""
        try:
            with closing(films):  # type: ignore[type-var]
                self._check()
                self.status = status
                for film in films:
                    self.film = film
                    self._check()
            self._check()
            if self.film is None:
                raise AuroraError("there was nothing to watch")
            finish(self.film)
        except Stopped:
            self._end("stopped", ApiError(503, "watching was stopped"))
        except Exception as error:
            self._end("failed", api_error(error), error)
        else:
            self.status = "ready"
            self.done.set_result(self.film)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _end(self, status: str, told: ApiError, error: Exception | None = None) -> None:
        self.status, self.error = status, told
        if told.status_code == 500:
            told.__cause__ = error
        self.done.set_exception(told)


class Watcher:
    """Watches up to `settings.watching` films at a time; others wait."""

    def __init__(self, model: VideoModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self._limits = DecodeLimits(seconds=settings.decode_seconds, memory_bytes=settings.decode_bytes)
        self._pool = ThreadPoolExecutor(settings.watching, thread_name_prefix="watch")
        self._running: set[Watch] = set()

    def start(
        self, name: str, files: Sequence[Path], sampling: Sampling, finish: Callable[[Film], None], *,
        film: Film | None = None, using: Mapping[str, Any] | None = None, checkpoint_seconds: float | None = None,
        turns: Sequence[Mapping[str, Any]] = (),
    ) -> Watch:
        """Watches files, behind what a `film` has seen where there is one. QueueFull when too many wait."""
        if len(self._running) >= self.settings.watching + self.settings.max_watching:
            raise QueueFull(f"{self.settings.max_watching} films are waiting to be watched; try again later")
        watch = Watch(name)
        watch.film, watch.began = film, 0 if film is None else film.frames
        films = self._films(watch, files, sampling, film, using or {}, checkpoint_seconds)
        if turns:
            films = _with_turns(films, [Turn(**{**turn, "places": tuple(turn["places"])}) for turn in turns])
        self._running.add(watch)
        watch.done.add_done_callback(lambda _: self._running.discard(watch))
        self._pool.submit(watch.run, films, finish)
        return watch

    def _films(self, watch: Watch, files: Sequence[Path], sampling: Sampling, film: Film | None,
               using: Mapping[str, Any], checkpoint_seconds: float | None) -> Iterator[Film]:
        options = {key: value for key, value in asdict(sampling).items() if value is not None}
        source = Uploaded(watch.name)

        def counted(count: int, lasting: float) -> None:
            source.lasting = lasting
            self._count(watch, count)

        source.decoded = frames(files, sampling, self.model.config.reader, self._limits, counted)
        if film is None:
            yield from self.model.watching(source, checkpoint_seconds=checkpoint_seconds, **options, **using)
        else:
            yield from film.extending(source, **options)
        if len(files) == 1 and watch.film is not None:
            last = watch.film.media[-1]._replace(sha256=file_hash(files[0]))
            watch.film.media = (*watch.film.media[:-1], last)

    def _count(self, watch: Watch, count: int) -> None:
        watch.total = count
        if count > self.settings.max_frames:
            raise ApiError(413, f"{count} frames are more than {self.settings.max_frames}")

    def close(self) -> None:
        """Stops all films and waits for them; those that have a job go on when the server is started again."""
        for watch in [*self._running]:
            watch.stop()
        self._pool.shutdown(wait=True, cancel_futures=False)


def _with_turns(films: Iterator[Film], turns: Sequence[Turn]) -> Iterator[Film]:
    """A film that grows, with what was said about it before a kill."""
    with closing(films):  # type: ignore[type-var]
        for number, film in enumerate(films):
            if number == 0:
                film.turns = (*turns, *film.turns)
            yield film


class Uploaded:
    """Decoded frames under a name; closing it ends the decoder."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.decoded: Iterator[Timed] = iter(())
        self.lasting: float | None = None
        """Seconds of all of it, known once the first frame is there."""

    def __iter__(self) -> Iterator[Timed]:
        return self.decoded

    def close(self) -> None:
        """Ends the decoder."""
        self.decoded.close()  # type: ignore[attr-defined]


class Feed:
    """Frames that a client sends one by one: read as they come, until nothing comes for a while."""

    live = True
    name = "live"

    def __init__(self) -> None:
        self._queue: Queue[Timed | None] = Queue(FEED)
        self._began = time.monotonic()
        self._last = 0.0
        self.given = 0
        self.ended = False

    def put(self, frame: np.ndarray, seconds: float | None) -> int:
        """The number of the frame, from 1. ApiError 429 when too many wait, 409 for a second before the last one."""
        seconds = time.monotonic() - self._began if seconds is None else seconds
        if seconds < self._last:
            raise ApiError(409, f"second {seconds:g} lies before the last frame, at {self._last:g}", param="seconds")
        if self.ended:
            raise ApiError(409, "the film is not live any more; send the frame again to begin anew")
        try:
            self._queue.put_nowait((seconds, frame))
        except Full:
            raise ApiError(429, f"{FEED} frames wait to be read; send them more slowly") from None
        self._last = seconds
        self.given += 1
        return self.given

    def end(self) -> None:
        """No frame follows."""
        self.ended = True
        with suppress(Full):  # else it ends when the queue is empty
            self._queue.put_nowait(None)

    def __iter__(self) -> Iterator[Timed]:
        idle = time.monotonic() + IDLE_SECONDS
        while True:
            try:
                one = self._queue.get(timeout=0.2)
            except Empty:
                if self.ended or time.monotonic() > idle:
                    self.ended = True
                    return
                continue
            if one is None:
                return
            idle = time.monotonic() + IDLE_SECONDS
            yield one


class Live(Watch):
    """A film that grows by the frames that a client sends, and is saved at its end, by `save`, and by `save_if_due`."""

    def __init__(self, name: str, film: Film, save: Callable[[Film], None]) -> None:
        super().__init__(name)
        self.feed, self.film, self.began = Feed(), film, film.frames
        self._save, self._saved_frames, self._saved_at = save, film.frames, time.monotonic()
        self._saving = threading.Lock()
        self._thread = threading.Thread(
            target=self.run, args=(film.extending(self.feed, fps=1.0), lambda _: self.save(), "live"), daemon=True,
            name=f"live-{name}")

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it after the frames that wait."""
        self.feed.end()

    def discard(self) -> None:
        """Ends it without saving it."""
        super().discard()
        self.feed.end()

    def join(self) -> None:
        """Returns when it is saved."""
        self._thread.join()

    def save_if_due(self) -> None:
        """Saves what was seen since the last time, if that is some seconds ago."""
        film = self.film
        if film is not None and film.frames != self._saved_frames and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Saves it as it is now."""
        with self._saving:
            if self.film is None or self._stop.is_set():
                return
            film = self.film.fork()  # which stays as it is while the film grows
            self._save(film)
            self._saved_frames, self._saved_at = film.frames, time.monotonic()
