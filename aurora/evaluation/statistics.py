"""How sure a score is: bootstrap intervals, and whether two runs over the same items differ.

Shape letters: N items, C clusters that are drawn together, K sums that a score is made of, R resamples.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aurora.errors import AuroraError

Floats: TypeAlias = NDArray[np.float64]
RESAMPLES = 2000
_BLOCK = 1 << 22  # counts that are held at once


class Interval(NamedTuple):
    """The middle 95 % of what resampling gives."""

    low: float
    high: float


def bootstrap(sums: Floats, score: Callable[[Floats], Floats], *, clusters: Sequence[Hashable] | None = None,
              groups: Sequence[Hashable] | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The 95 % interval of a score of sums [N, K]; `score` maps the sums of resamples [R, K] to [R].

    Items of one cluster, such as the questions about one video, are drawn together. With `groups` the items of each
    group are resampled apart, and `score` is given [R, K] per group and averaged over them.
    """
    return _middle(_resampled(np.asarray(sums, dtype=float), score, clusters, groups, resamples, seed))


def bootstrap_mean(values: Sequence[float], *, clusters: Sequence[Hashable] | None = None,
                   groups: Sequence[Hashable] | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The 95 % interval of the mean of values [N], or with `groups` of the mean of the groups' means."""
    return bootstrap(_with_count(values), _ratio, clusters=clusters, groups=groups, resamples=resamples, seed=seed)


class Comparison(NamedTuple):
    """Two runs over the same items: their means, the second minus the first with its interval, and p-values."""

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float  # two-sided, by the paired bootstrap
    mcnemar: float | None  # exact, two-sided; None when outcomes are not right or wrong
    only_first: int | None = None  # right in the first run only
    only_second: int | None = None


def compare(first: Mapping[str, float], second: Mapping[str, float], *,
            clusters: Mapping[str, Hashable] | None = None, groups: Mapping[str, Hashable] | None = None,
            resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compares the outcomes of two runs by the items that both have. AuroraError when they share none."""
    ids = sorted(first.keys() & second.keys())
    if not ids:
        raise AuroraError(f"the runs share none of their {len(first)} and {len(second)} items; a paired comparison "
                          "takes two runs over the same benchmark")
    one, two = (np.array([run[item] for item in ids], dtype=float) for run in (first, second))
    by_cluster, by_group = (None if mapping is None else [mapping[item] for item in ids]
                            for mapping in (clusters, groups))
    drawn = _resampled(_with_count(two - one), _ratio, by_cluster, by_group, resamples, seed)
    low, high = _middle(drawn)
    # The share of resamples beyond zero; one more than was drawn, so that p is never zero.
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    binary = bool(np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all())
    lost, won = int((one > two).sum()), int((two > one).sum())
    mean, other = (_mean(values, by_group) for values in (one, two))
    return Comparison(len(ids), mean, other, other - mean, low, high, min(1.0, 2 * (beyond + 1) / (resamples + 1)),
                      mcnemar(lost, won) if binary else None, lost if binary else None, won if binary else None)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, of the items that only one of two runs has right."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    return float(min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n))


def _mean(values: Floats, groups: Sequence[Hashable] | None) -> float:
    return float(np.mean([values[members].mean() for members in _members(groups, len(values))]))


def _with_count(values: Sequence[float] | Floats) -> Floats:
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=1)


def _ratio(sums: Floats) -> Floats:
    ratio: Floats = sums[:, 0] / sums[:, 1]
    return ratio


def _middle(drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(low), float(high))


def _resampled(sums: Floats, score: Callable[[Floats], Floats], clusters: Sequence[Hashable] | None,
               groups: Sequence[Hashable] | None, resamples: int, seed: int) -> Floats:
    """[R], the mean over groups of the scores of their resampled clusters."""
    if not len(sums):
        raise AuroraError("an interval needs at least one item")
    random = np.random.default_rng(seed)
    names = list(range(len(sums))) if clusters is None else list(clusters)
    total = np.zeros(resamples)
    parts = _members(groups, len(sums))
    for members in parts:
        total += _scores(_clustered(sums[members], [names[item] for item in members]), score, resamples, random)
    return total / len(parts)


def _scores(sums: Floats, score: Callable[[Floats], Floats], resamples: int, random: np.random.Generator) -> Floats:
    """[R] of the sums of clusters [C, K]."""
    number = len(sums)
    even, step = np.full(number, 1 / number), max(1, _BLOCK // number)
    return np.concatenate([score(random.multinomial(number, even, min(step, resamples - start)) @ sums)
                           for start in range(0, resamples, step)])


def _clustered(sums: Floats, names: Sequence[Hashable]) -> Floats:
    """The sums [C, K] of each cluster, in the order in which they first appear."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    summed = np.zeros((len(places), sums.shape[1]))
    np.add.at(summed, [places[name] for name in names], sums)
    return summed


def _members(groups: Sequence[Hashable] | None, number: int) -> list[list[int]]:
    """The places of each group's items; one group of all without `groups`."""
    if groups is None:
        return [list(range(number))]
    found: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group, []).append(place)
    return list(found.values())
