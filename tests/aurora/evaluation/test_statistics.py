"""Bootstrap intervals and paired comparisons."""

import math

import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.evaluation.statistics import bootstrap, bootstrap_mean, compare, mcnemar

ANSWERS = [1.0] * 60 + [0.0] * 40


def test_the_interval_of_a_share_is_that_of_the_normal_distribution() -> None:
    values = np.repeat([1.0, 0.0], [1200, 800])
    low, high = bootstrap_mean(values, resamples=8000)
    spread = 1.959964 * math.sqrt(0.6 * 0.4 / 2000)
    assert (low, high) == pytest.approx((0.6 - spread, 0.6 + spread), abs=0.002)


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not() -> None:
    assert bootstrap_mean(ANSWERS, seed=1) == bootstrap_mean(ANSWERS, seed=1)
    draws = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(draws, seed=1) != bootstrap_mean(draws, seed=2)


def test_questions_about_one_video_are_drawn_together() -> None:
    values = np.repeat([1.0, 0.0] * 20, 10)  # 40 videos, 10 equal answers each
    low, high = bootstrap_mean(values, clusters=np.repeat(range(40), 10).tolist(), resamples=4000)
    alone = bootstrap_mean([1.0, 0.0] * 20, resamples=4000)
    assert (low, high) == pytest.approx(tuple(alone), abs=0.03)
    assert high - low > 2.5 * np.subtract(*bootstrap_mean(values)[::-1])


def test_the_mean_of_groups_counts_every_group_alike() -> None:
    values, groups = [1.0] * 90 + [0.0] * 10, ["many"] * 90 + ["few"] * 10
    assert bootstrap_mean(values, groups=groups) == (0.5, 0.5)


def test_a_score_of_sums_is_resampled_as_a_whole() -> None:
    sums = np.array([[1.0, 1.0], [0.0, 99.0]] * 30)  # the ratio of sums is 0.01, the mean of ratios 0.5
    low, high = bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
    assert 0.005 < low < 0.01 < high < 0.02


def test_blocks_of_resamples_are_as_many_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_mean(ANSWERS, resamples=1000)
    monkeypatch.setattr("aurora.evaluation.statistics._BLOCK", 777)
    assert bootstrap_mean(ANSWERS, resamples=1000) == pytest.approx(tuple(whole), abs=0.02)


def test_nothing_has_no_interval() -> None:
    with pytest.raises(AuroraError, match="at least one item"):
        bootstrap_mean([])


@pytest.mark.parametrize(("lost", "won", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024),
                                                (30, 10, 0.00222144), (1000, 1000, 1.0)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(p, rel=1e-5)


def outcomes(right: int, of: int = 200) -> dict[str, float]:
    return {str(item): float(item < right) for item in range(of)}


def test_a_clear_difference_is_found() -> None:
    found = compare(outcomes(100), outcomes(140))
    assert (found.n, found.first, found.second, found.difference) == pytest.approx((200, 0.5, 0.7, 0.2))
    assert 0.1 < found.low < 0.2 < found.high < 0.3
    assert found.p < 0.01
    assert found.mcnemar is not None and found.mcnemar < 1e-9
    assert (found.only_first, found.only_second) == (0, 40)


def test_a_run_does_not_differ_from_itself() -> None:
    found = compare(outcomes(100), outcomes(100))
    assert (found.difference, found.low, found.high, found.p, found.mcnemar) == (0, 0, 0, 1, 1)


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    second = {**outcomes(100), **{str(item): 1.0 for item in range(100, 112)}}
    found = compare(outcomes(100), second)
    assert bootstrap_mean(list(outcomes(100).values())).high > found.second  # the intervals overlap
    assert found.p < 0.01


def test_scores_that_are_not_right_or_wrong_have_no_mcnemar() -> None:
    found = compare({"a": 0.5, "b": 0.2}, {"a": 0.6, "b": 0.4})
    assert (found.mcnemar, found.only_first) == (None, None)
    assert found.difference == pytest.approx(0.15)


def test_only_items_that_both_runs_have_are_compared() -> None:
    assert compare({"a": 1.0, "b": 0.0}, {"b": 1.0, "c": 1.0}).n == 1


def test_runs_without_common_items_are_refused() -> None:
    with pytest.raises(AuroraError, match="share none"):
        compare({"a": 1.0}, {"b": 1.0})


def test_groups_and_clusters_change_the_comparison() -> None:
    first, second = outcomes(0, 20), outcomes(10, 20)
    group = {str(item): "won" if item < 10 else "same" for item in range(20)}
    found = compare(first, second, groups=group)
    assert (found.difference, found.low, found.high) == (0.5, 0.5, 0.5)
    cluster = {item: group[item] for item in group}
    assert compare(first, second, clusters=cluster).low == 0
