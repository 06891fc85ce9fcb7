"""The tiny model that comes with Aurora."""

from __future__ import annotations

import pytest
import torch

import aurora
from aurora.inference.models import SHIPPED
from aurora.weights.model_folder import load_model


def test_the_shipped_model_is_small_and_whole() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5 * 2**20
    model, config = load_model(SHIPPED)
    assert config.dtype == "float32"  # computed in that, though half of it is stored
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_the_card_of_the_shipped_model_says_what_it_knows() -> None:
    assert "knows only Blocks world" in (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("question", "answer"), [
    ("How many objects can be seen?", "3"), ("In which direction does the yellow circle move?", "left"),
    ("What color is the object that moves?", "yellow")])
def test_a_question_needs_no_word_on_how_to_answer_it(question: str, answer: str) -> None:
    assert aurora.load().watch(SHIPPED.parent / "example.mp4").ask(question) == answer
