"""Measures every point in a process of its own, and says how memory and time grow with the number of frames."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from aurora.errors import AuroraError
from aurora.evaluation.efficiency.point import BASELINES, OURS, Point, says_out_of_memory
from aurora.evaluation.record import facts
from aurora.files import read_json, replacing, write_json
from aurora.weights.model_folder import model_hash

RESULT_FILE = "efficiency.json"
POINTS_FOLDER = "points"
COMPARED_FRAMES = 1024
"""At which the paper compares memory: 34 times less than InternVL-1.5 2B."""
LEVEL_FRAMES = 512
"""From here on the memory of a constant state must not grow."""
FITTED_FRAMES = 16
"""Slopes are fitted from here on: below, weights and constants hide what grows."""
# long enough that a video of hours is not mostly the opening of files, which leaves some kilobytes behind each time
CLIP_SECONDS, CLIP_FPS, CLIP_SIZE = 64, 24, (640, 360)
Found = Mapping[str, Any]
Progress = Callable[[str], None]


def measure_all(output: Path, base: Point, frames: Sequence[int], baselines: Sequence[str], *,
                timeout_seconds: float, stream_seconds: float | None = None, on_progress: Progress = lambda text: None
                ) -> dict[str, Any]:
    """The result, which is also written to `output`; points that are there already are not measured again, unless they
    took too long and may take longer now.

    AuroraError for options that are wrong. Once a series does not fit at a number of frames, larger ones are not tried.
    """
    output.mkdir(parents=True, exist_ok=True)
    if not base.video:
        base = replace(base, video=str(write_clip(output / "clip.mp4")))
    if base.model is not None:
        base = replace(base, model_hash=model_hash(base.model))
    live = None
    if stream_seconds is not None:
        on_progress("live video")
        live = _measured(output, replace(base, frames=0, stream_seconds=stream_seconds), timeout_seconds)
    series = {name: list(_series(output, replace(base, series=name), frames, timeout_seconds, on_progress))
              for name in (OURS, *baselines)}
    settings = {key: value for key, value in asdict(base).items() if key not in ("series", "frames", "stream_seconds")}
    result = {"settings": settings, "series": series, "live": live, **summary(series, base.limit_bytes),
              **facts(base.device)}
    with replacing(output / RESULT_FILE, folder=False) as file:
        write_json(file, result)
    return result


def _series(output: Path, base: Point, frames: Sequence[int], timeout_seconds: float, on_progress: Progress
            ) -> Iterator[dict[str, Any]]:
    failed: int | None = None
    reason = ""
    for number in sorted(set(frames)):
        on_progress(f"{base.series}, {number:,} frames")
        if failed is None:
            found = _measured(output, replace(base, frames=number), timeout_seconds)
        else:
            why = reason if "took more" in reason else "did not fit"
            found = {"fits": False, "reason": f"not tried, since {failed:,} frames {why}"}
        if not found["fits"] and failed is None:
            failed, reason = number, found["reason"]
        yield {"frames": number, **found}


def _measured(output: Path, point: Point, timeout_seconds: float) -> dict[str, Any]:
    """What a process found, now or in an earlier run with the same settings."""
    what = "live" if point.stream_seconds is not None else f"{point.frames:05}"
    path = output / POINTS_FOLDER / f"{point.series.replace(' ', '-')}-{what}.json"
    described = json.loads(json.dumps(asdict(point)))
    if path.is_file() and _holds(known := read_json(path), described, timeout_seconds):
        return dict(known["found"])
    found = run_point(point, timeout_seconds)
    with replacing(path, folder=False) as file:
        write_json(file, {"point": described, "timeout_seconds": timeout_seconds, "found": found})
    return found


def _holds(known: Found, described: Found, timeout_seconds: float) -> bool:
    """Whether an earlier run measured the same; what fits does so whatever the limit was."""
    before, found = known.get("point", {}), known.get("found", {})
    if "took more" in found.get("reason", "") and known.get("timeout_seconds", 0) < timeout_seconds:
        return False
    return before == described or (bool(found.get("fits")) and before | {"limit_bytes": None}
                                   == {**described, "limit_bytes": None})


def run_point(point: Point, timeout_seconds: float) -> dict[str, Any]:
    """What a process of its own measures; one that ends too late, or is ended for its memory, does not fit."""
    command = [sys.executable, "-m", "aurora.evaluation.efficiency"]
    try:
        ended = subprocess.run(command, input=json.dumps(asdict(point)), capture_output=True, text=True,
                               timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"fits": False, "reason": f"took more than {timeout_seconds:g} s (--timeout)"}
    if ended.returncode == 0:
        return dict(json.loads(ended.stdout.splitlines()[-1]))
    if ended.returncode == -9:
        return {"fits": False, "reason": "the system ended it, as it does when memory runs out"}
    if ended.returncode < 0 and says_out_of_memory(ended.stderr):  # C++ ends the process
        return {"fits": False, "reason": "memory ran out"}
    said = ended.stderr.strip().splitlines() or [f"status {ended.returncode}"]
    if ended.returncode == 2:
        raise AuroraError(said[-1])
    raise AuroraError(f"{point.series} with {point.frames:,} frames could not be measured: {said[-1]}")


def write_clip(path: Path) -> Path:
    """A small H.264 file of a square that moves over noise, where none is given."""
    if path.is_file():
        return path
    (width, height), rng = CLIP_SIZE, np.random.default_rng(0)
    noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with replacing(path, folder=False) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(CLIP_SECONDS * CLIP_FPS):
            image = noise.copy()
            left = number * 3 % (width - 64)
            image[128:192, left : left + 64] = (255, 64, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


# ---- what the points say -----------------------------------------------------------------------------------------


def summary(series: Mapping[str, Sequence[Found]], limit_bytes: int | None) -> dict[str, Any]:
    """Slopes of every series, the ratio of memory at 1,024 frames, and how level our memory stays."""
    ours = {point["frames"]: point for point in series[OURS]}
    return {"slopes": {name: slopes(points) for name, points in series.items()},
            "level": level(ours),
            "compared": {name: compared(ours.get(COMPARED_FRAMES), _at(points, COMPARED_FRAMES), limit_bytes)
                         for name, points in series.items() if name in BASELINES}}


def slopes(points: Sequence[Found]) -> dict[str, float | None]:
    """Exponents over frames in log-log scale (0: constant, 1: linear, 2: quadratic), and bytes for each frame."""
    fitted = [point for point in points if point["fits"] and point["frames"] >= FITTED_FRAMES]
    frames = [point["frames"] for point in fitted]
    peaks = [point["peak_bytes"] for point in fitted]
    memory = {"memory": None, "bytes_per_frame": None} if None in peaks or len(frames) < 2 else \
        {"memory": _exponent(frames, peaks), "bytes_per_frame": float(np.polyfit(frames, peaks, 1)[0])}
    return {**memory, "held": _exponent(frames, [point["memory_bytes"] for point in fitted]),
            "watching": _exponent(frames, [point["watch_seconds"] for point in fitted]),
            "first_token": _exponent(frames, [point["stages"]["first token"]["seconds"] for point in fitted])}


def _exponent(frames: Sequence[int], values: Sequence[float]) -> float | None:
    if len(frames) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(frames), np.log(values), 1)[0])


def level(ours: Mapping[int, Found]) -> dict[str, Any] | None:
    """Memory and time of a frame at the most frames, as multiples of those at 512; None where one is missing."""
    most = max((frames for frames, point in ours.items() if point["fits"]), default=0)
    few = ours.get(LEVEL_FRAMES)
    if few is None or not few["fits"] or most <= LEVEL_FRAMES or few["peak_bytes"] is None:
        return None
    many = ours[most]
    return {"frames": [LEVEL_FRAMES, most], "memory": many["peak_bytes"] / few["peak_bytes"],
            "seconds_per_frame": many["watch_seconds"] / most / (few["watch_seconds"] / LEVEL_FRAMES)}


def compared(ours: Found | None, other: Found | None, limit_bytes: int | None) -> dict[str, Any] | None:
    """Memory and time of a baseline at 1,024 frames as multiples of ours. Where it does not fit into a known limit, the
    limit says how many times it takes at least."""
    if ours is None or other is None or not ours["fits"] or ours["peak_bytes"] is None:
        return None
    grown = max(1, ours["peak_bytes"] - ours["rest_bytes"])
    if other["fits"]:
        return {"memory": other["peak_bytes"] / ours["peak_bytes"],
                "memory_above_rest": (other["peak_bytes"] - other["rest_bytes"]) / grown,
                "seconds": other["watch_seconds"] / ours["watch_seconds"], "at_least": False}
    if limit_bytes is None or "took more" in other["reason"]:
        return {"memory": None, "reason": other["reason"]}
    return {"memory": limit_bytes / ours["peak_bytes"], "memory_above_rest": None, "seconds": None, "at_least": True}


def _at(points: Sequence[Found], frames: int) -> Found | None:
    return next((point for point in points if point["frames"] == frames), None)


def live_row(result: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, Any] | None:
    """The row of StreamingEval (arXiv 2603.21493) for a model: frame rate, memory, time to first token, accuracy."""
    live = result["live"]
    if live is None or not live["fits"]:
        return None
    return {"max_fps": live["max_fps"], "peak_bytes": live["peak_bytes"], "memory_bytes": live["memory_bytes"],
            "first_token_seconds": live["first_token_seconds"], "accuracy": dict(scores)}


def free_bytes(device: str) -> int | None:
    """Nine tenths of the main memory that is free; None for a GPU, which refuses by itself what it does not hold."""
    if device.partition(":")[0] == "cuda":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None if free is None else math.floor(0.9 * free)
