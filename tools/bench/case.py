"""What a bench is made of: works, and who takes part in them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tools.bench.machine import Ceilings, Cost
from tools.bench.timing import Spread, Work

BENCHES = {"kernels": ("kernels",), "prefill": ("language",), "decode": ("language",), "vision": ("vision",),
           "train": ("train",), "data": ("data_building", "data_decoding", "data_reading")}
"""For each bench the modules beside this one whose function of the bench's name gives its cases."""

ROUNDED = 0.15
"""Of what a whole model gives in bfloat16 or int8, from float32 on the same weights. bfloat16 rounds by up to 2⁻⁹,
about 20 times in each of 24 layers: √480 · 2⁻⁹ = 0.04 where roundings are independent. The most that was measured of a
peer is 0.08; a missing token makes more than 0.45."""

Outcome = Tensor | Sequence[Tensor]
"""What a run gives, to be compared with what it should have given."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    device: str = "cpu"
    dtypes: tuple[str, ...] = ()  # none: those that the bench is about
    quick: bool = False
    weights: Path | None = None  # an RWKV-6 1.6B `.pth`; none: random ones
    folder: Path = Path()  # for what contestants read; emptied at the end
    threads: int = 1

    @property
    def gpu(self) -> bool:
        return self.device.startswith("cuda")

    def wanted(self, *dtypes: str) -> list[str]:
        """Those of the bench's dtypes that the user wants."""
        return [dtype for dtype in dtypes if not self.dtypes or dtype in self.dtypes]


@dataclass(frozen=True)
class Contestant:
    """One way to do a work."""

    name: str
    build: Callable[[], Work]
    """Makes everything ready; the first run gives what is compared."""
    missing: str | None = None
    """Why it cannot take part here, and what would change that."""
    files: Callable[[], object] | None = None
    """Makes the files that it reads, where they are not there: before its memory is measured."""
    cost: Cost | None = None
    """Where it does other work than the case says."""
    result: str = ""
    """What it gives: contestants are compared with each other where this is the same word."""


@dataclass(frozen=True)
class Case:
    """One work and who does it. The first contestant that can take part leads: the others are compared with it."""

    name: str
    contestants: Sequence[Contestant]
    cost: Cost | Callable[[], Cost]
    """A function is asked after the first contestant was checked."""
    tolerance: float  # of the relative difference in the Euclidean norm
    oracle: Callable[[str], Outcome | None] | None = None
    """From the word of a result to what is right; none: what the first contestant of that word gives."""
    items: float | None = None  # tokens or frames of one run, for a rate
    unit: str = "tokens"
    heavy: bool = False
    """Two contestants at a time, and the memory of each measured in a process of its own."""

    def needed(self) -> Cost:
        return self.cost if isinstance(self.cost, Cost) else self.cost()


class Row(NamedTuple):
    """What came out for one contestant of one case."""

    case: str
    contestant: str
    status: str  # ok | missing | failed
    note: str = ""  # why it is missing or failed
    difference: float | None = None  # from what is right, relative
    tolerance: float | None = None
    seconds: Spread | None = None
    slower: Spread | None = None  # how many times longer than the lead in the same rounds; none for the lead
    rate: float | None = None  # items per second
    unit: str = ""
    cost: Cost | None = None
    of_limit: Spread | None = None  # the share of the machine's limit in the same rounds that was reached
    peak_bytes: int | None = None


class Result(NamedTuple):
    """What came out of one case."""

    case: str
    rows: list[Row]
    ceilings: list[Ceilings]  # in every round
    others: float | None
    """Cores that other processes kept busy meanwhile; none where the system does not say."""


def cases_of(bench: str, settings: Settings) -> list[Case]:
    """The cases of a bench; empty when it has none in a dtype that was asked for."""
    return [case for name in BENCHES[bench]
            for case in getattr(importlib.import_module(f"tools.bench.{name}"), bench)(settings)]


def difference(actual: Outcome, expected: Outcome) -> float:
    """The largest |actual - expected| / |expected| over the tensors, in the Euclidean norm; infinite when shapes or
    numbers do not agree or anything is not finite."""
    pairs = list(zip(_listed(actual), _listed(expected), strict=False))
    if len(_listed(actual)) != len(_listed(expected)) or any(a.shape != b.shape for a, b in pairs):
        return math.inf
    return max(_difference(a, b) for a, b in pairs)


def _difference(actual: Tensor, expected: Tensor) -> float:
    expected = expected.detach().double().cpu()
    error = float((actual.detach().double().cpu() - expected).norm() / expected.norm().clamp(min=1e-300))
    return error if math.isfinite(error) else math.inf


def _listed(outcome: Outcome) -> Sequence[Tensor]:
    return [outcome] if isinstance(outcome, Tensor) else outcome
