"""The page of the demo, made of a small evaluation with an untrained model."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from aurora.assemble import build_model
from aurora.config import load_config
from aurora.demo.run import SHOWN, Answer, answers_shown, check_caption, write_report
from aurora.evaluation.predictions import Prediction, PredictionFile
from aurora.evaluation.questions import read_questions
from aurora.evaluation.summary import summarise
from aurora.inference.video_model import VideoModel
from datamodules.blocks.build import write_heldout


def test_sentences_of_a_caption_are_looked_up_in_the_true_one() -> None:
    truth = "The scene is gray. A red star moves left. A blue square rests at the top."
    said = "The scene is gray. A red star moves left. A red star moves left. A blue circle appears"
    assert check_caption(said, truth) == (
        [("The scene is gray.", True), ("A red star moves left.", True), ("A red star moves left.", False),
         ("A blue circle appears", False)], ["A blue square rests at the top."])
    assert check_caption("", truth)[0] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out questions, the first six families of which are answered correctly, the others wrongly."""
    folder = tmp_path_factory.mktemp("demo")
    write_heldout(folder / "heldout", 1, seed=0)
    questions = read_questions(folder / "heldout")
    file = PredictionFile(folder / "predictions.jsonl", {})
    for number, question in enumerate(questions):
        answer = question.answer if number < 6 else "nothing <b>of</b> that"
        file.add([Prediction(question.id, "own", question.video, answer),
                  Prediction(question.id, "wrong", questions[0].video, question.answer)])
    return folder


@pytest.fixture(scope="module")
def model_and_config():
    config = load_config("experiment=blocks").model
    return build_model(config).eval(), config


@pytest.fixture(scope="module")
def answers(folder: Path, model_and_config) -> list[Answer]:
    watcher = VideoModel(*model_and_config)
    return answers_shown(watcher, folder / "heldout", folder / "predictions.jsonl", Console(quiet=True))


@pytest.fixture(scope="module")
def page(folder: Path, answers: list[Answer], model_and_config) -> str:
    questions = read_questions(folder / "heldout")
    made = PredictionFile(folder / "predictions.jsonl", {}).done
    model, config = model_and_config
    result = {**summarise(questions, made), **config.tree, "model": "0", "seconds": 60.0,
              "peak_memory_bytes": 2**30, "seeds": {"data": 0}, "versions": {"torch": "2"}}
    write_report(folder / "report.html", model=model, config=config, result=result, answers=answers,
                 curves={"pretrain": [(1, 2.0), (2, 1.0)], "vision": []})
    return (folder / "report.html").read_text()


def test_as_many_wrong_answers_as_right_ones_are_shown(answers: list[Answer]) -> None:
    assert [answer.chosen == answer.question.right for answer in answers] == [True] * SHOWN + [False] * SHOWN
    assert len({answer.question.family for answer in answers}) == 2 * SHOWN


def test_captions_are_checked_against_the_true_ones(folder: Path, answers: list[Answer]) -> None:
    truths = {line["id"]: line["caption"] for line in
              map(json.loads, (folder / "heldout" / "questions.jsonl").read_text().splitlines())}
    for answer in answers:
        true_sentences = [sentence for sentence, true in answer.caption if true]
        assert answer.checked
        assert sorted(true_sentences + answer.missing) == sorted(re.findall(r"\S[^.]*\.", truths[answer.question.id]))


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_every_picture_is_described_and_nothing_is_fetched(page: str) -> None:
    tags = Tags(page).found
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag in ("svg", "video"))
    assert sum(tag == "video" for tag, _ in tags) == 2 * SHOWN
    assert not re.search(r'(?:src|href|poster)="(?!data:)|url\(|@import', page)


def test_the_page_marks_what_is_right_and_wrong(page: str, answers: list[Answer]) -> None:
    assert page.count("✓ Aurora:") == page.count("✗ Aurora:") == SHOWN
    assert "nothing &lt;b&gt;of&lt;/b&gt; that" in page and "names no option" in page
    sentences = [true for answer in answers for _, true in answer.caption]
    assert page.count('"wrong">✗') == sentences.count(False) + SHOWN + 1  # one explains the mark
    assert page.count('"right">✓') == sentences.count(True) + SHOWN + 1


def test_families_answered_best_come_first(page: str) -> None:
    shares = [int(share) for share in re.findall(r'data-name="accuracy">(\d+) %', page)]
    assert len(shares) > 10 and shares == sorted(shares, reverse=True) and shares[0] == 100
