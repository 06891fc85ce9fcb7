"""Running a bench: every case's contestants are checked, then timed."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from aurora.errors import AuroraError
from tools.bench.case import Case, Contestant, Outcome, Result, Row, Settings, difference
from tools.bench.machine import Ceilings, Limit, OtherProcesses, ceilings, limits
from tools.bench.memory import peak_bytes
from tools.bench.timing import Clock, Spread, Work, clock_of, interleave, ratios, spread

log = logging.getLogger(__name__)

ROUNDS, QUICK_ROUNDS = 12, 3
SECONDS = 12.0  # per group of contestants, once the fewest rounds are done


def run_case(bench: str, case: Case, settings: Settings) -> Result:
    """A row for every contestant, those that cannot take part included, and what the machine could do at that time."""
    others = OtherProcesses()
    present = [contestant for contestant in case.contestants if contestant.missing is None]
    course = _Course(bench, case, settings)
    for group in _groups(present, case.heavy):
        course.run(group)
    rows = [_row(contestant, course) for contestant in case.contestants]
    return Result(case.name, rows, course.ceilings, others.cores())


@dataclass
class _Course:
    """What was measured so far in one case."""

    bench: str
    case: Case
    settings: Settings
    lead: str = ""
    right: dict[str, Outcome] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    slower: dict[str, Spread] = field(default_factory=dict)
    limited: dict[str, list[float]] = field(default_factory=dict)  # by the ceilings of each sample's round, in seconds
    ceilings: list[Ceilings] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def run(self, group: Sequence[Contestant]) -> None:
        """Builds, checks and times contestants side by side; only the lead is kept for the next group."""
        for contestant in group:
            if contestant.name not in self.works and contestant.name not in self.faults:
                self._enter(contestant)
        works = {one.name: self.works[one.name] for one in group if one.name in self.works}
        if works:
            self._time(works)
        self.works = {name: work for name, work in self.works.items() if name == self.lead}
        del works
        release(self.settings)

    def _enter(self, contestant: Contestant) -> None:
        log.info("%s: %s", self.case.name, contestant.name)
        try:
            if contestant.files is not None:
                contestant.files()
            if self.case.heavy and not self.settings.quick:
                # first, because a contestant that brings its process down does so there
                self.peaks[contestant.name] = peak_bytes(self.bench, self.case.name, contestant.name, self.settings)
            work = contestant.build()
            start = time.perf_counter()
            outcome = work()
            self.first[contestant.name] = time.perf_counter() - start
            self._check(contestant, outcome)
        # a contestant that breaks must not end an unattended run; its row says what happened
        except Exception as error:
            self.faults[contestant.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            self.works[contestant.name] = work
            self.lead = self.lead or contestant.name

    def _check(self, contestant: Contestant, outcome: Outcome) -> None:
        if contestant.result not in self.right:
            right = None if self.case.oracle is None else self.case.oracle(contestant.result)
            self.right[contestant.result] = outcome if right is None else right
        if outcome is self.right[contestant.result]:
            return
        found = self.differences[contestant.name] = difference(outcome, self.right[contestant.result])
        if not found <= self.case.tolerance:
            raise AuroraError(f"parity: {found:.1e} from what is right, where {self.case.tolerance:.0e} is allowed")

    def _time(self, works: Mapping[str, Work]) -> None:
        clock: Clock = clock_of(self.settings.device)
        rounds = QUICK_ROUNDS if self.settings.quick else ROUNDS
        if not self.limits:
            self.limits = limits(self.case.needed(), self.settings.device, self.settings.threads,
                                 quick=self.settings.quick, memory=getattr(self.works.get(self.lead), "reads", ()))
        turns = {**works, **{limit.name: limit.work for limit in self.limits}}
        first = {limit.name: clock(limit.work) for limit in self.limits} | self.first
        taken = interleave(turns, clock, first=first, rounds=rounds, seconds=SECONDS)
        reached = ceilings(self.limits, taken, self.case.needed().dtype)
        self.ceilings += reached
        for name in works:
            cost = next(one.cost for one in self.case.contestants if one.name == name) or self.case.needed()
            self.samples.setdefault(name, []).extend(taken[name])
            self.limited.setdefault(name, []).extend(ceiling.limit(cost) for ceiling in reached)
            if name != self.lead and self.lead in taken:
                self.slower[name] = ratios(taken[name], taken[self.lead])


def release(settings: Settings) -> None:
    """Gives the memory of what nobody holds any more back."""
    gc.collect()
    if settings.gpu:
        torch.cuda.empty_cache()


def _groups(present: Sequence[Contestant], heavy: bool) -> list[list[Contestant]]:
    if not heavy or len(present) < 3:
        return [list(present)] if present else []
    return [[present[0], other] for other in present[1:]]


def _row(contestant: Contestant, course: _Course) -> Row:
    case, name = course.case, contestant.name
    row = Row(case.name, name, "ok", difference=course.differences.get(name), tolerance=case.tolerance, unit=case.unit)
    if contestant.missing is not None:
        return row._replace(status="missing", note=contestant.missing)
    if name not in course.samples:
        return row._replace(status="failed", note=course.faults[name])
    seconds = spread(course.samples[name])
    return row._replace(
        cost=contestant.cost or case.needed(),
        seconds=seconds,
        slower=course.slower.get(name),
        rate=None if case.items is None else case.items / seconds.median,
        of_limit=ratios(course.limited[name], course.samples[name]),
        peak_bytes=course.peaks.get(name),
    )

