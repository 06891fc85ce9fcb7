"""What happens to contestants: those that agree, differ, break, are not there, or bring their process down."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tools.bench import machine, memory, run
from tools.bench.case import Case, Contestant, Row, Settings, difference
from tools.bench.machine import Cost
from tools.bench.timing import Work

QUICK = Settings(quick=True)
RIGHT = torch.arange(1.0, 9.0)


def contestant(name: str, outcome: Tensor = RIGHT, **options: object) -> Contestant:
    return Contestant(name, lambda: lambda: outcome, **options)


def rows_of(*contestants: Contestant, **options: object) -> dict[str, Row]:
    case = Case("a case", contestants, Cost(1e6, 1e6), 1e-3, **options)
    rows = run.run_case("kernels", case, QUICK).rows
    assert [row.contestant for row in rows] == [one.name for one in contestants]
    return {row.contestant: row for row in rows}


def test_contestants_are_compared_with_the_first() -> None:
    rows = rows_of(contestant("first"), contestant("second", RIGHT * 1.0001))
    assert rows["first"].status == rows["second"].status == "ok"
    assert rows["first"].difference is None and rows["first"].slower is None
    assert rows["second"].difference == pytest.approx(1e-4, rel=1e-2)
    assert rows["second"].slower is not None


def test_one_that_differs_is_not_timed_and_says_by_how_much() -> None:
    rows = rows_of(contestant("first"), contestant("wrong", RIGHT * 1.1), contestant("third"))
    wrong = rows["wrong"]
    assert wrong.status == "failed" and wrong.seconds is None
    assert "parity: 1.0e-01" in wrong.note and "1e-03 is allowed" in wrong.note
    assert rows["third"].status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [RIGHT[:4], RIGHT * math.nan, torch.full_like(RIGHT, math.inf)])
def test_other_shapes_and_values_that_are_not_finite_never_agree(outcome: Tensor) -> None:
    assert rows_of(contestant("first"), contestant("wrong", outcome))["wrong"].status == "failed"


def test_an_oracle_stands_above_the_first() -> None:
    rows = rows_of(contestant("first", RIGHT * 2), contestant("second"), oracle=lambda result: RIGHT)
    assert rows["first"].status == "failed"
    assert rows["second"].status == "ok"
    assert rows["second"].slower is None  # it leads now


def test_only_contestants_with_the_same_result_are_compared() -> None:
    rows = rows_of(contestant("merged", RIGHT[:4], result="merged"), contestant("all", result="all"),
                   contestant("wrong", RIGHT[:4], result="all"))
    assert [row.status for row in rows.values()] == ["ok", "ok", "failed"]


def test_a_share_is_of_the_limit_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is twice as slow in the second round slows the limit as well as the contestant."""
    def in_turns(works: dict[str, Work], *_: object, **__: object) -> dict[str, list[float]]:
        return {name: [1.0, 2.0, 1.0] if name.startswith("limit") else [2.0, 4.0, 2.0] for name in works}

    monkeypatch.setattr(run, "interleave", in_turns)
    monkeypatch.setattr(run, "limits", lambda *_, **__: [
        machine.Limit(f"limit: {reads}", reads, 1e6, lambda: None) for reads in (False, True)])
    reached = rows_of(contestant("first"))["first"].of_limit
    assert reached is not None and reached[:3] == (0.5, 0.5, 0.5)


def test_a_cost_may_be_known_only_after_the_check() -> None:
    checked: list[str] = []

    def needed() -> Cost:
        assert checked
        return Cost(1e6, 2e6)

    case = Case("a case", [contestant("first")], needed, 1e-3, lambda result: checked.append(result) or RIGHT)
    row, = run.run_case("kernels", case, QUICK).rows
    assert row.status == "ok" and row.cost == Cost(1e6, 2e6)


def test_every_tensor_of_a_result_counts() -> None:
    assert difference([RIGHT, RIGHT * 1.5], [RIGHT, RIGHT]) == pytest.approx(0.5)
    assert difference([RIGHT], [RIGHT, RIGHT]) == math.inf


def test_a_contestant_that_is_not_there_is_listed_with_what_would_bring_it() -> None:
    rows = rows_of(contestant("first"), contestant("peer", missing="not installed: pip install peer"))
    assert rows["peer"].status == "missing" and rows["peer"].note == "not installed: pip install peer"


def test_a_contestant_that_breaks_does_not_end_the_run() -> None:
    def broken() -> Work:
        raise RuntimeError("no\nroom")

    rows = rows_of(Contestant("broken", broken), contestant("other"))
    assert rows["broken"].note == "RuntimeError: no room"
    assert rows["other"].status == "ok"


@pytest.mark.slow
def test_no_more_than_two_heavy_contestants_are_held() -> None:
    held: set[str] = set()
    most = 0

    class Held:
        def __init__(self, name: str) -> None:
            nonlocal most
            self.name = name
            held.add(name)
            most = max(most, len(held))

        def __call__(self) -> Tensor:
            return RIGHT

        def __del__(self) -> None:
            held.discard(self.name)

    def held_one(name: str) -> Contestant:
        return Contestant(name, lambda: Held(name))

    rows = rows_of(*(held_one(name) for name in "abcd"), heavy=True)
    assert most == 2
    assert all(rows[name].slower is not None for name in "bcd")


def test_the_processor_time_of_others_is_told_and_ours_is_not() -> None:
    """The other process counts as ours only after it has ended."""
    work = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    alone, beside = machine.OtherProcesses(), machine.OtherProcesses()
    if alone.cores() is None:
        pytest.skip("the system does not say how busy it is")
    other = subprocess.Popen([sys.executable, "-c", work])
    time.sleep(0.2)
    while Path(f"/proc/{other.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    during = beside.cores()
    other.wait()
    after = alone.cores()
    assert during is not None and after is not None and during > after


def test_only_a_busy_machine_is_warned_about() -> None:
    assert machine.warning(0.05) is None and machine.warning(None) is None
    assert "used 1.5 of" in str(machine.warning(1.5))


@pytest.mark.slow
def test_the_peak_is_what_one_run_adds() -> None:
    """In a process that has done nothing before, as the measuring one is."""
    size = 64 * 2**20
    code = ("import torch; from tools.bench import memory; from tools.bench.case import Settings\n"
            "quick = Settings(quick=True)\n"
            f"before = memory._start(quick); torch.ones({size // 4}).sum()\n"
            "print(before and memory._peak(quick, before))")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    if shown == "None":
        pytest.skip("the system does not say how much memory a process took")
    assert 0.9 * size < int(shown) < 2 * size


@pytest.mark.slow
def test_a_process_that_breaks_is_an_error_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(run.AuroraError, match="ended with status 1 in a process of its own"):
        memory.peak_bytes("kernels", "no such case", "nobody", Settings(quick=True, folder=tmp_path))
