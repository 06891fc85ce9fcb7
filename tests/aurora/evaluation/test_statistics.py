"""Bootstrap intervals and paired comparisons."""

import math

import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.evaluation.statistics import bootstrap, bootstrap_mean, compare, mcnemar, score_interval, sign_flip, wilson

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
    low, high = bootstrap_mean([*values[1:], 0.0], groups=groups)
    assert low < (1 + 89 / 90) / 2 - 0.5 < high and high - low < 0.1


def test_a_video_is_drawn_for_all_its_groups_at_once() -> None:
    outcomes, videos = [1.0, 0.0] * 100, [video for video in range(40) for _ in range(5)]
    alike = [float(video % 2) for video in videos]
    families = list("abcde") * 40
    whole = score_interval(alike, clusters=videos, groups=families)
    assert tuple(whole) == pytest.approx(tuple(score_interval(alike[::5], clusters=range(40))), abs=0.03)
    apart = score_interval(outcomes, clusters=range(200), groups=families)
    assert whole.high - whole.low > 1.8 * (apart.high - apart.low)


def test_a_group_may_weigh_more_than_another() -> None:
    values, groups = [1.0, 0.0] * 20, ["a"] * 20 + ["b"] * 20
    low, high = bootstrap_mean(values, groups=groups, weights={"a": 0.999, "b": 0.001})
    assert high - low == pytest.approx(np.subtract(*bootstrap_mean(values[:20])[::-1]), abs=0.05)


@pytest.mark.parametrize("groups", [None, [*"aaaaab"]])
def test_few_videos_and_groups_of_few_have_no_interval(groups) -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap_mean(values) is not None
    assert bootstrap_mean(values, clusters=[0, 1, 2, 3, 4, 4], groups=groups) is None
    assert groups is None or bootstrap_mean(values, groups=groups) is None


def test_resamples_that_are_all_alike_are_no_interval() -> None:
    assert score_interval([1.0, 0.0] * 8, clusters=[n // 2 for n in range(16)]) is None
    assert score_interval([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0], clusters=range(7), groups=range(7)) is None


def test_a_share_of_independent_questions_has_wilsons_interval() -> None:
    assert score_interval([1.0] * 23 + [0.0], clusters=range(24)) == pytest.approx(wilson(23, 24))
    together = score_interval([1.0] * 23 + [0.0], clusters=[n // 2 for n in range(24)])
    assert together is not None and together != pytest.approx(wilson(23, 24))


def test_all_right_is_wilsons_interval_of_as_many_videos() -> None:
    assert score_interval([1.0] * 30, clusters=[n // 3 for n in range(30)]) == pytest.approx(wilson(10, 10))
    assert score_interval([0.0] * 10, clusters=range(10)) == pytest.approx(wilson(0, 10))
    rare = score_interval([1.0] * 101, clusters=range(101), groups=["many"] * 100 + ["one"])
    assert rare == pytest.approx(wilson(1 / (0.25 + 0.0025), 1 / (0.25 + 0.0025)))  # half of the score is one video


def test_a_score_of_sums_is_resampled_as_a_whole() -> None:
    sums = np.array([[1.0, 1.0], [0.0, 99.0]] * 30)  # the ratio of sums is 0.01, the mean of ratios 0.5
    low, high = bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
    assert 0.005 < low < 0.01 < high < 0.02


def test_blocks_of_resamples_are_as_many_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_mean(ANSWERS, resamples=1000)
    monkeypatch.setattr("aurora.evaluation.statistics._BLOCK", 777)
    assert bootstrap_mean(ANSWERS, resamples=1000) == pytest.approx(tuple(whole), abs=0.02)


def test_nothing_has_no_interval() -> None:
    assert bootstrap_mean([]) is None and score_interval([], clusters=[], groups=[]) is None


# Values of statsmodels' proportion_confint(method="wilson")
@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (81, 263, 0.255289, 0.366210),
     (0, 0, 0.0, 1.0)],
)
def test_the_interval_of_a_proportion_is_wilsons(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("lost", "won", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024),
                                                (30, 10, 0.00222144), (1000, 1000, 1.0)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(p, rel=1e-5)


def outcomes(right: int, of: int = 200) -> dict[str, float]:
    return {str(item): float(item < right) for item in range(of)}


def test_a_clear_difference_is_found() -> None:
    found = compare(outcomes(100), outcomes(140))
    assert (found.n, found.first, found.second, found.difference) == pytest.approx((200, 0.5, 0.7, 0.2))
    assert found.interval is not None and 0.1 < found.interval.low < 0.2 < found.interval.high < 0.3
    assert found.p < 0.01
    assert found.mcnemar is not None and found.mcnemar < 1e-9
    assert (found.only_first, found.only_second) == (0, 40)


def test_a_run_does_not_differ_from_itself() -> None:
    found = compare(outcomes(100), outcomes(100))
    assert (found.difference, found.interval, found.p, found.mcnemar) == (0, None, 1, 1)


def test_one_question_and_questions_about_one_video_show_no_difference() -> None:
    for right, cluster in ((1, None), (12, {str(item): "the video" for item in range(12)})):
        found = compare(outcomes(0, right), outcomes(right, right), clusters=cluster)
        assert (found.difference, found.interval, found.p) == (1, None, 1)


@pytest.mark.parametrize(("lost", "won"), [(0, 5), (1, 9), (3, 7), (4, 4)])
def test_of_one_question_a_video_flipped_signs_are_mcnemars_test(lost: int, won: int) -> None:
    assert sign_flip(np.array([-1.0] * lost + [1.0] * won + [0.0] * 50)) == pytest.approx(mcnemar(lost, won))


def test_many_flipped_signs_are_drawn() -> None:
    assert sign_flip(np.array([-1.0] * 10 + [1.0] * 30), resamples=9999) == pytest.approx(mcnemar(10, 30), abs=0.002)
    assert sign_flip(np.array([1.0] * 40)) == 1 / 2001


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
    assert (found.difference, found.interval) == (0.5, None)  # which items are drawn changes no group's mean
    assert compare(first, second).p < 0.01
    assert compare(first, second, clusters=group).p == 1
