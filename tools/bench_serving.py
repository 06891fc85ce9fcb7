"""How much continuous batching gives: 32 questions on 8 films at a time against one at a time, and how long a question
waits for its first token while a long film is watched.

    python -m tools.bench_serving [--model FOLDER] [--questions 32] [--films 8] [--tokens 64] [--rounds 3] [--threads 1]
"""

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch

from aurora.inference.film import Film
from aurora.inference.generation import Generation
from aurora.inference.reading import Memory
from aurora.inference.video_model import VideoModel, load
from aurora.serving.answer import Answer
from aurora.serving.engine import Engine

QUESTION = "Describe the video in detail."  # of the tiny model's answers the longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; default: the tiny model that comes with Aurora")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", help="such as dtype=float32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load(given.model, *given.overrides, device=given.device)
    engine = Engine(model.model, model.runner, max_sequences=given.questions, max_waiting=given.questions)
    model.prefill = engine.prefill
    try:
        asyncio.run(compare(model, engine, given))
    finally:
        engine.close()


async def compare(model: VideoModel, engine: Engine, given: argparse.Namespace) -> None:
    """Prints both."""
    films = [model.watch(frames(24, seed), fps=1.0) for seed in range(given.films)]
    memories = [film.memory() for film in films]
    jobs = [(memories[number % len(films)], question_ids(films[0])) for number in range(given.questions)]
    options = Generation(max_new_tokens=given.tokens)
    rates: dict[str, list[float]] = {"one at a time": [], f"{given.questions} at a time": []}
    texts: dict[str, list[str]] = {}
    for round_number in range(given.rounds + 1):  # the first one warms up
        for name in rates:
            seconds, texts[name], tokens = await timed(engine, jobs, options, name)
            if round_number:
                rates[name].append(tokens / seconds)
    medians = [statistics.median(rate) for rate in rates.values()]
    for name, rate in rates.items():
        print(f"{name:>16}: {statistics.median(rate):9.1f} tokens/s  ({min(rate):.1f} to {max(rate):.1f})")
    same = len({tuple(text) for text in texts.values()}) == 1
    print(f"ratio {medians[1] / medians[0]:.2f}, answers {'identical' if same else 'DIFFERENT'}")
    await first_tokens(model, engine, films[0], given)


async def timed(engine: Engine, jobs: Sequence[tuple[Memory, list[int]]], options: Generation, name: str
                ) -> tuple[float, list[str], int]:
    """Seconds, the answers, and how many tokens they have."""
    answers: list[Answer] = []

    async def one(memory: Memory, ids: list[int]) -> str:
        answers.append(engine.ask(memory, ids, options))
        return await answers[-1].whole()

    began = time.perf_counter()
    if name.startswith("one"):
        texts = [await one(*job) for job in jobs]
    else:
        texts = list(await asyncio.gather(*(one(*job) for job in jobs)))
    return time.perf_counter() - began, texts, sum(answer.tokens for answer in answers)


async def first_tokens(model: VideoModel, engine: Engine, film: Film, given: argparse.Namespace) -> None:
    """Prints the time to the first token of a short question, idle and while a long film is watched."""
    stop = threading.Event()

    def endless() -> object:
        second = 0
        pictures = frames(64, 99)
        while not stop.is_set():
            yield float(second), pictures[second % len(pictures)]
            second += 1

    idle = await first_token(engine, film, 10 * given.rounds)
    watching = asyncio.create_task(asyncio.to_thread(lambda: model.watch(endless())))  # type: ignore[arg-type]
    await asyncio.sleep(2.0)
    before = engine.counts["film_tokens"]
    began = time.perf_counter()
    busy = await first_token(engine, film, 10 * given.rounds)
    speed = (engine.counts["film_tokens"] - before) / (time.perf_counter() - began)
    stop.set()
    await watching
    for name, seconds in (("idle", idle), ("while a film is watched", busy)):
        print(f"first token {name}: median {1e3 * statistics.median(seconds):.2f} ms, "
              f"worst {1e3 * max(seconds):.2f} ms")
    print(f"ratio {statistics.median(busy) / statistics.median(idle):.2f}; the film went on at {speed:.0f} tokens/s")


async def first_token(engine: Engine, film: Film, times: int) -> list[float]:
    """Seconds to the first text of an answer, so many times."""
    found = []
    for _ in range(times):
        ids = question_ids(film)
        began = time.perf_counter()
        await engine.ask(film.memory(), ids, Generation(max_new_tokens=1)).whole()
        found.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return found


def question_ids(film: Film) -> list[int]:
    """What is read after the film."""
    return film.question_ids([film.turn(QUESTION)])


def frames(number: int, seed: int) -> list[np.ndarray]:
    """Pictures [64, 64, 3] of noise."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (number, 64, 64, 3), dtype=np.uint8))


if __name__ == "__main__":
    main()
