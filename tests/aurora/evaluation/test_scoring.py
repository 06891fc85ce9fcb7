from __future__ import annotations

import pytest

from aurora.errors import AuroraError
from aurora.evaluation.prompts import multiple_choice, option_label
from aurora.evaluation.scoring import chosen_option, exact_match, token_f1, wilson

OPTIONS = ("a ball", "red", "dog house", "The dog.")


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("red", 1),
        ("Red.", 1),
        ("The answer is red", 1),
        ("a  ball", 0),
        ("the dog", 3),
        ("(B) red", 1),
        ("(B)", 1),
        ("(b) red", 1),
        ("B)", 1),
        ("B) red", 1),
        ("B", 1),
        ("B.", 1),
        ("B. red", 1),
        ("B: red", 1),
        (" (B) red\n", 1),
        ("Best option: (B)", 1),
        ("Answer: B", 1),
        ("The answer is (B) red", 1),
        ("The correct option is B.", 1),
        ("(A) a ball", 0),
        ("(D)", 3),
    ],
)
def test_a_letter_or_the_whole_text_of_an_option_is_read(answer: str, chosen: int) -> None:
    assert chosen_option(answer, OPTIONS) == chosen


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "A man opens the door.",
        "The man picks up a cup",
        "reddish",
        "red ball",
        "ball",
        "dog",
        "b",
        "(E) none",
        "(A) or (B)",
        "I think it is (B)",
        "(AB)",
        "A, because it is red",
        "Because",
    ],
)
def test_what_names_no_single_option_is_not_read_as_one(answer: str) -> None:
    assert chosen_option(answer, OPTIONS) is None


def test_a_text_that_two_options_share_names_neither() -> None:
    assert chosen_option("red", ("red", "Red.", "blue")) is None


# Values of statsmodels' proportion_confint(method="wilson")
@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (81, 263, 0.255289, 0.366210)],
)
def test_the_interval_is_wilsons(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-6)


def test_nothing_asked_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_case_punctuation_and_articles_do_not_matter_to_a_match() -> None:
    assert exact_match("The red ball.", "red ball") and not exact_match("a blue ball", "red ball")


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [("red ball", "red ball", 1.0), ("red", "red ball", 2 / 3), ("red red", "red ball", 0.5), ("blue", "red", 0.0),
     ("", "red", 0.0)],
)
def test_word_overlap_is_scored_by_its_f1(answer: str, truth: str, score: float) -> None:
    assert token_f1(answer, truth) == pytest.approx(score)


def test_a_choice_is_put_in_the_form_of_mvbench() -> None:
    assert multiple_choice("What colour is it?", ["red", "blue"]) == (
        "What colour is it?\nOption:\n(A) red\n(B) blue\nOnly give the best option."
    )


def test_every_label_is_read_as_its_option() -> None:
    assert [chosen_option(option_label(index), [""] * 26) for index in range(26)] == list(range(26))


def test_there_is_no_letter_after_z() -> None:
    with pytest.raises(AuroraError, match="option 27"):
        option_label(26)


def test_one_option_is_no_choice() -> None:
    with pytest.raises(AuroraError, match="two or more"):
        multiple_choice("What colour is it?", ["red"])
