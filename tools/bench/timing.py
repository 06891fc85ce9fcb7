"""Timing several contestants at one work: interleaved, so that a machine that drifts slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Work = Callable[[], Any]
"""One run of a contestant, with everything that it needs already in place."""
Clock = Callable[[Work], float]
"""Runs a work once and says how many seconds it took."""

REPEAT_SECONDS = 0.1
"""A work is repeated for so long within a round: its first run pays for the caches that the others have emptied."""
WARM_SECONDS = 2.0
"""A first run of that length has warmed up what there is to warm up."""
MOST_REPEATS = 50
FEWEST_ROUNDS = 3
LONG_SECONDS = 20.0
"""Of a round, from which on two are enough: what takes so long is far from what it is compared with."""
# more than the last-level cache of any GPU of today
_FLUSHED_BYTES = 256 * 2**20


class Spread(NamedTuple):
    """Where the middle half of some samples lies."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    samples: int


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high, len(samples))


def ratios(samples: Sequence[float], lead: Sequence[float]) -> Spread:
    """How many times longer these samples are than the lead's of the same rounds."""
    return spread([own / of_lead for own, of_lead in zip(samples, lead, strict=True)])


def interleave(
    works: Mapping[str, Work], clock: Clock, *, first: Mapping[str, float], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of every work in each of `rounds` rounds A B C, A B C, …; at least 3 rounds (2 of long ones), no further
    ones once `seconds` have passed. A short work is repeated within a round, whose sample is then the median.

    Every work has run once before; `first` says how long that took.
    """
    repeats = {name: _repeats(work, clock, first[name]) for name, work in works.items()}
    samples: dict[str, list[float]] = {name: [] for name in works}
    start = time.perf_counter()
    for finished in range(rounds):
        taken = time.perf_counter() - start
        if finished >= (2 if taken > 2 * LONG_SECONDS else FEWEST_ROUNDS) and taken > seconds:
            break
        for name, work in works.items():
            samples[name].append(statistics.median(clock(work) for _ in range(repeats[name])))
    return samples


def clock_of(device: str) -> Clock:
    """The clock of a device: `perf_counter` on the CPU, events with a cold cache on CUDA."""
    return _cuda_clock(torch.device(device)) if device.startswith("cuda") else _cpu_clock


def _repeats(work: Work, clock: Clock, first: float) -> int:
    """How often a work is run within a round; estimated from a second run, unless the first one was long."""
    warm = first if first > WARM_SECONDS else clock(work)
    return max(1, min(MOST_REPEATS, int(REPEAT_SECONDS / max(warm, 1e-9))))


def _cpu_clock(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_clock(device: torch.device) -> Clock:
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def clock(work: Work) -> float:
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return clock
