"""How far a result is from what it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from aurora.bench.case import Outcome


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
