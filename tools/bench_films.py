"""Measures what a film saves: memory over length, the second question, loading in place of watching, and overlap.

    python -m tools.bench_films [--model FOLDER] [--frames 4096] [--long 16384] [--width 320] [dtype=bfloat16]

Memory is that of processes which watch one film each. Ratios are what counts: the machine may be busy, so each is taken
inside of one run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import aurora
from aurora.inference.generation import Generation
from aurora.inference.ingest import prepared, stage_threads, units, with_threads
from aurora.inference.reading import encode, read_tokens
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling

QUESTION = "What happens in the video?"
SHORT = Generation(max_new_tokens=8)
RATE = 25
ROUNDS = 5
PROCESSES = 3
"""That watch each film; their peaks differ by 1 %."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--frames", type=int, default=4096)
    parser.add_argument("--long", type=int, default=16384)
    parser.add_argument("--short", type=int, default=512)
    parser.add_argument("--width", type=int, default=320, help="pixels of the video's long side")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="such as dtype=bfloat16")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for line in report(options, Path(folder)):
            print(line, flush=True)


def report(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The lines of the result."""
    peaks = {}
    for frames in (options.short, options.long):
        video = write_video(folder / f"{frames}.mp4", frames, options.width)
        peaks[frames] = statistics.median(run_child(str(video), options)["peak_bytes"] for _ in range(PROCESSES))
        yield f"{frames:,} frames: peak memory {peaks[frames] / 1e6:.1f} MB"
    yield (f"memory of {options.long:,} frames is {peaks[options.long] / peaks[options.short]:.3f} × that of "
           f"{options.short:,}")
    model, video = load(options), write_video(folder / "film.mp4", options.frames, options.width)
    yield from questions(model, video, folder)
    yield from overlap(model, video, min(2048, options.frames))  # of 512 beginning and end are 3 %
    yield from skipping(model, folder, min(512, options.frames), options.width)


def questions(model: VideoModel, video: Path, folder: Path) -> Iterator[str]:
    """First against second question, and loading against watching."""
    began = time.perf_counter()
    film = model.watch(video, fps=float(RATE))
    first = film.ask(QUESTION, options=SHORT)
    watched = time.perf_counter() - began
    film.save(folder / "film.aurora")
    again = timed(lambda: film.ask(QUESTION, options=SHORT))

    def load() -> str:
        return str(model.open(folder / "film.aurora").ask(QUESTION, options=SHORT))

    assert load() == first
    loaded = timed(load)
    yield f"{film.frames:,} frames: watching and the first answer {watched:.2f} s"
    yield f"second question {1e3 * again:.1f} ms: {watched / again:,.0f} × faster"
    size = (folder / "film.aurora").stat().st_size
    yield (f"loading the film ({size / 1e6:.2f} MB) and asking {1e3 * loaded:.1f} ms: "
           f"{watched / loaded:,.0f} × faster than watching")


def overlap(model: VideoModel, video: Path, frames: int) -> Iterator[str]:
    """Watching against each of its stages alone, which computes with as many threads as while watching."""
    sampling = Sampling(fps=float(RATE), stop=frames / RATE)
    film = model.blank()
    used = film.model

    def decode() -> Any:
        return list(prepared(used.reader.read(str(video), sampling), used.layout, used.skip, None))

    threads, take_turns = stage_threads(used.model)
    shots = decode()
    chunks = [unit.chunk for unit in units(shots, ()) if unit.chunk]
    tokens = [encode(used.model, chunk) for chunk in chunks]

    def prefill() -> None:
        memory = film.now.memory
        for part in tokens:
            memory = read_tokens(used.runner, memory, part)

    work: dict[str, tuple[int, Callable[[], object]]] = {
        "decoding": (1, decode), "encoder": (threads, lambda: [encode(used.model, one) for one in chunks]),
        "backbone": (threads, prefill),
        "watching": (torch.get_num_threads(),
                     lambda: model.watch(video, fps=float(RATE), stop=frames / RATE))}
    rounds = []
    for _ in range(ROUNDS):  # side by side, since the machine is faster now and slower then
        rounds.append({})
        for name, (count, run) in work.items():
            with with_threads(count):
                rounds[-1][name] = timed(run, 1)
    medians = {name: statistics.median(one[name] for one in rounds) for name in work}
    stages = [name for name in work if name != "watching"]
    slowest, total = (statistics.median(one["watching"] / bound(one[name] for name in stages) for one in rounds)
                      for bound in (max, sum))
    alone = ", ".join(f"{name} {medians[name]:.2f} s" for name in stages)
    yield (f"watching {frames} frames {medians['watching']:.2f} s; alone: {alone}; {slowest:.2f} × the slowest, "
           f"{total:.2f} × their sum, on {os.cpu_count()} cores with {threads} thread{'s' * (threads > 1)} each"
           f"{', in turn' if take_turns else ''}")


def skipping(model: VideoModel, folder: Path, frames: int, width: int) -> Iterator[str]:
    """Frames that `skip=unchanged` leaves out of a video that stands still and of one that moves."""
    for name, moving in (("static", False), ("moving", True)):
        video = write_video(folder / f"{name}.mp4", frames, width, moving=moving)
        plain = timed(lambda: model.watch(video, fps=float(RATE)), 1)  # noqa: B023 - called at once
        began = time.perf_counter()
        film = model.watch(video, fps=float(RATE), skip="unchanged")
        took = time.perf_counter() - began
        yield (f"skip=unchanged, {name} video: {film.now.skipped} of {film.frames} frames skipped, "
               f"{plain / took:.1f} × as fast as skip=none")


def timed(work: Callable[[], object], runs: int = 5) -> float:
    """The median of its seconds."""
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(runs))


def load(options: argparse.Namespace) -> VideoModel:
    """The model that is measured."""
    return aurora.load(options.model, *options.overrides)


def run_child(video: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of watching in a process of its own."""
    command = [sys.executable, "-m", "tools.bench_films", "--child", video, *options.overrides,
               *(["--model", options.model] if options.model else [])]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result


def child(video: str, options: argparse.Namespace) -> dict[str, Any]:
    """Watches every frame of a video."""
    film = load(options).watch(video, fps=float(RATE))
    return {"frames": film.frames, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def write_video(path: Path, frames: int, width: int, *, moving: bool = True) -> Path:
    """An H.264 file of a square that moves, or stands still, before a gradient, with a camera's noise."""
    rng, height = np.random.default_rng(0), width * 3 // 4 // 2 * 2
    ground = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None] + np.zeros(3)
    noises = [rng.normal(0, 1.5, ground.shape) for _ in range(8)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = ground + noises[rng.integers(len(noises))]
            left = number * 3 % (width - 40) if moving else width // 3
            image[20:60, left:left + 40] = (230, 60, 20)
            picture = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
