"""What the machine can do at most, measured beside the work: arithmetic in matrix products, and reading memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from aurora.bench.timing import Clock, clock_of

ROUNDS = 7
MEASURED = ("float32", "bfloat16")
DTYPES = {name: getattr(torch, name) for name in (*MEASURED, "float64")}


class Cost(NamedTuple):
    """What one run of a work cannot do without."""

    flops: float
    bytes: float
    dtype: str = "float32"  # of the matrix products: float32 | bfloat16


class Ceilings(NamedTuple):
    """The machine's limits, all threads at work."""

    flops: dict[str, float]  # per second in matrix products, by dtype
    read: float  # bytes per second

    def limit(self, cost: Cost) -> float:
        """Seconds that the work takes at least."""
        return max(cost.flops / self.flops[cost.dtype], cost.bytes / self.read)

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each of two measurements: what the machine can do at most was disturbed in the lower one."""
        return Ceilings({name: max(rate, other.flops[name]) for name, rate in self.flops.items()},
                        max(self.read, other.read))


def measure_ceilings(device: str, *, quick: bool = False) -> Ceilings:
    """The best of several tries of each; `quick` uses small operands, which say less."""
    clock = clock_of(device)
    side, width = (256, 2**20) if quick else (8192, 2**30) if device.startswith("cuda") else (3072, 2**28)
    return Ceilings({name: _product(clock, side, DTYPES[name], device) for name in MEASURED},
                    _reading(clock, width, device))


def _product(clock: Clock, side: int, dtype: torch.dtype, device: str) -> float:
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    return 2 * side**3 / _best(clock, lambda: torch.mm(a, b, out=out))


def _reading(clock: Clock, size: int, device: str) -> float:
    """The faster of two ways to read all of a tensor: a matrix times a vector, and a sum."""
    matrix = torch.ones(size // 4 // 4096, 4096, device=device)
    vector, out = torch.ones(4096, device=device), torch.empty(len(matrix), device=device)
    ways: tuple[Callable[[], Tensor], ...] = (lambda: torch.mv(matrix, vector, out=out), lambda: matrix.sum())
    return matrix.numel() * 4 / min(_best(clock, way) for way in ways)


def _best(clock: Clock, work: Callable[[], Tensor]) -> float:
    clock(work)
    return min(clock(work) for _ in range(ROUNDS))
