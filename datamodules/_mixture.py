"""From a mixture to the samples that an epoch reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from aurora.mixture import Mixture, take

from .plan.epoch import Members


def members(mixture: Mixture, samples: Mapping[str, np.ndarray]) -> list[list[Members]]:
    """What is read of each dataset's samples, in the order of `mixture`.

    Which samples are taken of a dataset follows from its name alone: asking for more keeps those of before, and
    neither the seed nor the other datasets change them.
    """
    takes = take(mixture, {name: len(numbers) for name, numbers in samples.items()})
    return [_read(name, samples[name], *takes[name]) for name in mixture.datasets]


def _read(name: str, samples: np.ndarray, count: int, visits: int) -> list[Members]:
    """All that are taken, as often as they go into `visits`, and some of them once more."""
    if not count:
        return []
    taken = _first(name, samples, count)
    repeats, rest = divmod(visits, count)
    return [Members(taken, repeats), *([Members(_first(name, taken, rest), 1)] if rest else [])]


def _first(name: str, samples: np.ndarray, count: int) -> np.ndarray:
    """So many of the samples, in their order."""
    if count == len(samples):
        return samples
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return samples[np.sort(np.random.default_rng(seed).permutation(len(samples))[:count])]
