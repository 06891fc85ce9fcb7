"""Turns, medians, quartiles and ratios, with a clock that follows a script."""

from __future__ import annotations

import ctypes
import functools
import operator
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from tools.bench import machine
from tools.bench.machine import Ceilings, Cost, Limit, ceilings, limits
from tools.bench.timing import Spread, Work, clock_of, interleave, ratios, spread


def reported(*seconds: float) -> tuple[Callable[[Work], float], list[str]]:
    """A clock that runs the work and says these durations in turn, over and over; and who ran when."""
    order: list[str] = []
    given: Iterator[float] = iter(seconds * 100)

    def clock(work: Work) -> float:
        order.append(work())
        return next(given)

    return clock, order


def works(*names: str) -> dict[str, Work]:
    return {name: lambda name=name: name for name in names}


def test_median_and_quartiles_are_those_of_the_samples() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_a_ratio_is_taken_within_each_round() -> None:
    # the machine slows down to a half in the second round; the ratio does not change
    assert ratios([3.0, 6.0, 3.0], [1.0, 2.0, 1.0]).median == 3.0
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])


def test_works_take_turns() -> None:
    clock, order = reported(10.0)
    samples = interleave(works("a", "b"), clock, first={"a": 10.0, "b": 10.0}, rounds=3, seconds=1e9)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [10.0] * 3, "b": [10.0] * 3}


def test_a_short_work_is_repeated_within_a_round_and_a_long_one_is_not() -> None:
    clock, order = reported(0.025)
    interleave(works("short"), clock, first={"short": 0.5}, rounds=3, seconds=1e9)
    assert order == ["short"] * (1 + 3 * 4)  # 100 ms hold four of them; one more run showed it


def test_the_sample_of_a_round_is_the_median_of_its_repeats() -> None:
    clock, _ = reported(0.05, 0.001, 0.5)  # the second run says 50 ms: two repeats
    samples = interleave(works("a"), clock, first={"a": 0.5}, rounds=3, seconds=1e9)
    assert samples["a"] == pytest.approx([0.2505, 0.0255, 0.275])


def test_there_are_three_rounds_even_when_the_time_is_up() -> None:
    clock, order = reported(3.0)
    samples = interleave(works("a"), clock, first={"a": 3.0}, rounds=9, seconds=0.0)
    assert len(samples["a"]) == 3 == len(order)


def test_the_clock_of_the_cpu_measures_the_work() -> None:
    assert clock_of("cpu")(lambda: time.sleep(0.02)) >= 0.02


def test_the_limit_is_what_takes_longer_arithmetic_or_reading() -> None:
    ceilings = Ceilings(flops=100.0, read=10.0)
    assert ceilings.limit(Cost(flops=1000.0, bytes=50.0)) == 10.0
    assert ceilings.limit(Cost(flops=10.0, bytes=50.0)) == 5.0


def test_the_limit_of_a_round_is_the_fastest_way_in_that_round() -> None:
    ways = [Limit(name, reads, 60.0, lambda: None)
            for name, reads in (("mm", False), ("one stream", True), ("four streams", True))]
    seconds = {"mm": [1.0, 2.0], "one stream": [2.0, 5.0], "four streams": [3.0, 4.0]}
    assert ceilings(ways, seconds, "bfloat16") == [Ceilings(60.0, 30.0, "bfloat16"), Ceilings(30.0, 15.0, "bfloat16")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_machine_multiplies_and_reads_in_several_ways(dtype: str) -> None:
    ways = limits(Cost(1.0, 2.0**20, dtype, (64, 32, 48)), "cpu", 1, quick=True)
    names = [way.name for way in ways]
    assert f"limit: {dtype} products, torch" in names and "limit: float32 products, torch" in names
    assert {way.amount for way in ways if not way.reads} == {2 * 64 * 32 * 48}
    assert {way.amount for way in ways if way.reads} == {2**20}
    for way in ways:
        way.work()


def test_the_reader_reads_all_of_the_memory() -> None:
    reader = machine._reader()
    if reader is None:
        pytest.skip("no C++ compiler")
    reader.read_lines.restype = ctypes.c_int64
    numbers = torch.randint(2**62, (64 * 8,))
    for streams, threads in ((1, 1), (4, 2), (8, 1)):
        found = reader.read_lines(ctypes.c_void_p(numbers.data_ptr()), ctypes.c_int64(64), ctypes.c_int64(streams),
                                  ctypes.c_int(threads))
        assert found == functools.reduce(operator.xor, numbers.tolist())
