"""How sure a score is: intervals, and whether two runs over the same items differ.

Shape letters: N items, C clusters that are drawn together, G groups, K sums that a score is made of, R resamples.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aurora.errors import AuroraError

Floats: TypeAlias = NDArray[np.float64]
RESAMPLES = 2000
FEWEST = 6
"""Clusters below which nothing is bootstrapped: resamples of so few understate the spread, and no two-sided test of
fewer than six pairs can reach 5 %."""
_BLOCK = 1 << 22  # counts that are held at once


class Interval(NamedTuple):
    """The middle 95 %."""

    low: float
    high: float

    @property
    def percent(self) -> "Interval":
        """The same of a score in percent."""
        return Interval(100 * self.low, 100 * self.high)


def score_interval(outcomes: Sequence[float], *, clusters: Sequence[Hashable], groups: Sequence[Hashable] | None = None,
                   weights: Mapping[Any, float] | None = None) -> Interval | None:
    """The 95 % interval of the mean of outcomes [N] from 0 to 1, or of the weighted mean of groups' means.

    Wilson's where outcomes are 0 or 1 and independent, since resamples of few say too little of a share near 0 or 1;
    else it is bootstrapped. Where all are 0, or all are 1, resamples are alike: Wilson's then too, of as many
    independent outcomes as clusters of these weights are worth (Kish's effective sample size).
    """
    if groups is None and set(outcomes) == {0, 1} and len(set(clusters)) == len(outcomes):
        return Interval(*wilson(sum(outcomes), len(outcomes)))
    if set(outcomes) in ({0}, {1}):
        of_clusters = _clustered(_shares(len(outcomes), groups, weights)[:, None], clusters)
        worth = 1 / float((of_clusters**2).sum())
        return Interval(*wilson(worth * outcomes[0], worth))
    return bootstrap_mean(outcomes, clusters=clusters, groups=groups, weights=weights)


def wilson(right: float, asked: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) when nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap(sums: Floats, score: Callable[[Floats], Floats], *, clusters: Sequence[Hashable] | None = None,
              resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The 95 % interval of a score of sums [N, K]; `score` maps the sums of resamples [R, K] to [R].

    Items of one cluster, such as the questions about one video, are drawn together. None of fewer than `FEWEST`
    clusters, and where all resamples are alike: both say nothing of the spread.
    """
    sums = _clustered(np.asarray(sums, dtype=float), clusters)
    if len(sums) < FEWEST:
        return None
    random, even = np.random.default_rng(seed), np.full(len(sums), 1 / len(sums))
    drawn = np.concatenate([score(random.multinomial(len(sums), even, number) @ sums)
                            for number in _blocks(resamples, len(sums))])
    low, high = np.quantile(drawn[np.isfinite(drawn)], (0.025, 0.975))  # a group may not have been drawn at all
    return Interval(float(low), float(high)) if high - low > 1e-12 else None


def bootstrap_mean(values: Sequence[float] | Floats, *, clusters: Sequence[Hashable] | None = None,
                   groups: Sequence[Hashable] | None = None, weights: Mapping[Any, float] | None = None,
                   resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The 95 % interval of the mean of values [N], or with `groups` of the mean of the groups' means, by `weights`.

    Clusters are drawn once for all groups, since they may have items in several. None as of `bootstrap`, also where a
    group has fewer than `FEWEST` clusters.
    """
    names, places = _places(groups, len(values))
    sums = np.zeros((len(values), len(names), 2))  # of the values and the items of each group
    sums[np.arange(len(values)), places, 0] = values
    sums[np.arange(len(values)), places, 1] = 1
    sums = _clustered(sums, clusters)
    if (sums[:, :, 1] > 0).sum(axis=0).min(initial=len(sums)) < FEWEST:
        return None
    share = _group_shares(names, weights)

    def mean(drawn: Floats) -> Floats:
        total, count = np.moveaxis(drawn.reshape(-1, len(names), 2), 2, 0)
        with np.errstate(invalid="ignore"):
            means: Floats = total / count @ share
        return means

    return bootstrap(sums.reshape(len(sums), -1), mean, resamples=resamples, seed=seed)


class Comparison(NamedTuple):
    """Two runs over the same items: their means, the second minus the first with its interval, and p-values."""

    n: int
    first: float
    second: float
    difference: float
    interval: Interval | None  # of the difference, by the paired bootstrap
    p: float  # two-sided, by flipping signs
    mcnemar: float | None  # exact, two-sided; None when outcomes are not right or wrong
    only_first: int | None = None  # right in the first run only
    only_second: int | None = None


def compare(first: Mapping[str, float], second: Mapping[str, float], *,
            clusters: Mapping[str, Hashable] | None = None, groups: Mapping[str, Hashable] | None = None,
            weights: Mapping[Any, float] | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compares the outcomes of two runs by the items that both have. AuroraError when they share none."""
    ids = sorted(first.keys() & second.keys())
    if not ids:
        raise AuroraError(f"the runs share none of their {len(first)} and {len(second)} items; a paired comparison "
                          "takes two runs over the same benchmark")
    one, two = (np.array([run[item] for item in ids], dtype=float) for run in (first, second))
    by_cluster, by_group = (None if mapping is None else [mapping[item] for item in ids]
                            for mapping in (clusters, groups))
    share = _shares(len(ids), by_group, weights)
    mean, other = float(share @ one), float(share @ two)
    interval = bootstrap_mean(two - one, clusters=by_cluster, groups=by_group, weights=weights, resamples=resamples,
                              seed=seed)
    p = sign_flip(_clustered((share * (two - one))[:, None], by_cluster)[:, 0], resamples=resamples, seed=seed)
    binary = bool(np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all())
    lost, won = int((one > two).sum()), int((two > one).sum())
    return Comparison(len(ids), mean, other, other - mean, interval, p, mcnemar(lost, won) if binary else None,
                      lost if binary else None, won if binary else None)


def sign_flip(differences: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The two-sided p-value of the sum of differences [C], each of which might as well have had the other sign.

    Exact where there are no more combinations of signs than resamples, such as for 10 clusters; else of random ones.
    """
    differences = differences[differences != 0]
    number = len(differences)
    least = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()  # sums in another order differ in their last bits
    if 2**number <= resamples:
        signs = np.arange(2**number)[:, None] >> np.arange(number) & 1
        return float((np.abs((1 - 2 * signs) @ differences) >= least).mean())
    random = np.random.default_rng(seed)
    beyond = sum(int((np.abs((1 - 2 * random.integers(0, 2, (block, number))) @ differences) >= least).sum())
                 for block in _blocks(resamples, number))
    return (beyond + 1) / (resamples + 1)  # what was found is one of the combinations


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, of the items that only one of two runs has right."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    return float(min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n))


def _blocks(resamples: int, number: int) -> Iterator[int]:
    """How many resamples of so many clusters are drawn at a time."""
    step = max(1, _BLOCK // number)
    return (min(step, resamples - start) for start in range(0, resamples, step))


def _clustered(sums: Floats, names: Sequence[Hashable] | None) -> Floats:
    """The sums [C, …] of each cluster, in the order in which they first appear; [N, …] as they are without names."""
    if names is None:
        return sums
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    summed = np.zeros((len(places), *sums.shape[1:]))
    np.add.at(summed, [places[name] for name in names], sums)
    return summed


def _places(groups: Sequence[Hashable] | None, number: int) -> tuple[list[Hashable], list[int]]:
    """The groups, and the place of each item's; one group of all without `groups`."""
    names = list(dict.fromkeys([None] if groups is None else groups))
    places = {name: place for place, name in enumerate(names)}
    return names, [0] * number if groups is None else [places[group] for group in groups]


def _group_shares(names: Sequence[Hashable], weights: Mapping[Any, float] | None) -> Floats:
    """[G] what each group's mean weighs; they sum to 1."""
    share = np.array([1.0 if weights is None else weights[name] for name in names])
    shares: Floats = share / share.sum()
    return shares


def _shares(number: int, groups: Sequence[Hashable] | None, weights: Mapping[Any, float] | None) -> Floats:
    """[N] what each item weighs in the weighted mean of its groups' means; they sum to 1."""
    names, places = _places(groups, number)
    shares: Floats = (_group_shares(names, weights) / np.bincount(places))[places]
    return shares
