from __future__ import annotations

import pytest

from aurora.evaluation.summary import squad_scores, text_overlap
from aurora.interfaces import Item


def test_nothing_asked_says_nothing() -> None:
    assert squad_scores([]) == {"exact_match": None, "token_f1": None}


def test_case_punctuation_and_articles_do_not_matter_to_a_match() -> None:
    pairs = [("The red ball.", "red ball"), ("a blue ball", "red ball")]
    assert squad_scores(pairs)["exact_match"] == 0.5


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [("red ball", "red ball", 1.0), ("red", "red ball", 2 / 3), ("red red", "red ball", 0.5), ("blue", "red", 0.0),
     ("", "red", 0.0)],
)
def test_word_overlap_is_scored_by_its_f1(answer: str, truth: str, score: float) -> None:
    assert squad_scores([(answer, truth)])["token_f1"] == pytest.approx(score)


@pytest.mark.parametrize("answer", [None, "", " \n"])
def test_a_failed_or_empty_answer_is_no_article(answer: str | None) -> None:
    items = [Item("1", "v.mp4", "Which word?", "a"), Item("2", "v.mp4", "Which word?", "an")]
    nothing, half = (text_overlap(items, {"1": answer, "2": said}) for said in (answer, "an"))
    assert (nothing["exact_match"], nothing["token_f1"], nothing["bleu_1"]) == (0, 0, 0)
    assert (half["exact_match"], half["token_f1"]) == (0.5, 0.5)
