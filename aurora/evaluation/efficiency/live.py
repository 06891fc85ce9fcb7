"""Whether a live video is read without falling behind, and how soon an answer to a question about it begins."""

import time
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Any

from aurora.errors import AuroraError
from aurora.evaluation.efficiency.point import QUESTION, Meter, Point
from aurora.evaluation.efficiency.stages import frames_at_once, loaded, looped
from aurora.inference.film import Film
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel

ATTEMPTS = 10
HIGHEST_FPS = 1000.0  # that a reader samples at


def measure_live(point: Point) -> dict[str, Any]:
    """The highest frame rate at which frames that come in real time are read in time, and the time to first token."""
    assert point.stream_seconds is not None
    model, config = loaded(point)
    watcher = VideoModel(model, config)
    chunk = frames_at_once(watcher, point)
    watcher.watch(islice(looped(watcher, point.video, 1.0), chunk))  # what is compiled on first use
    meter = Meter(point.device)
    with meter.stage("stream"):
        film, tried = _highest(watcher, point, chunk, _throughput(watcher, point))
        began = time.perf_counter()
        film.ask(QUESTION, options=Generation(max_new_tokens=1))
        first = time.perf_counter() - began
    return {"fits": True, "max_fps": tried[-1]["fps"], "first_token_seconds": first, "tried": tried,
            "memory_bytes": film.state_bytes, "rest_bytes": meter.rest_bytes, "peak_bytes": meter.peaks["stream"]}


def _highest(watcher: VideoModel, point: Point, chunk: int, rate: float) -> tuple[Film, list[dict[str, float]]]:
    """The film that was shown at the first rate that keeps up, from `rate` downwards, and what was tried.

    Reading a film of S seconds may end as late as 5 % of S, and one chunk of frames, which waits until it is full.
    """
    assert point.stream_seconds is not None
    tried: list[dict[str, float]] = []
    while len(tried) < ATTEMPTS:
        film, late = _play(watcher, point.video, rate, point.stream_seconds)
        tried.append({"fps": rate, "late_seconds": late})
        if late <= 0.05 * point.stream_seconds + chunk / rate:
            return film, tried
        rate *= 0.85
    raise AuroraError(f"no frame rate from {tried[0]['fps']:.3g} down to {tried[-1]['fps']:.3g} kept up; is something "
                      "else running on this machine?")


def _throughput(watcher: VideoModel, point: Point) -> float:
    """Frames per second when they come as fast as they are taken."""
    assert point.stream_seconds is not None
    began = time.perf_counter()
    end = began + point.stream_seconds / 2
    film = watcher.watch(takewhile(lambda _: time.perf_counter() < end, looped(watcher, point.video, 1.0)))
    return min(HIGHEST_FPS, film.frames / (time.perf_counter() - began))


def _play(watcher: VideoModel, video: str, rate: float, seconds: float) -> tuple[Film, float]:
    """The film of a video that is shown in real time, and how many seconds after its end it was read."""
    frames, began = max(1, round(seconds * rate)), time.perf_counter()

    def live() -> Iterator[tuple[float, Any]]:
        for shown, frame in islice(looped(watcher, video, rate), frames):
            time.sleep(max(0.0, began + shown - time.perf_counter()))
            yield shown, frame

    film = watcher.watch(live())
    return film, time.perf_counter() - began - frames / rate
