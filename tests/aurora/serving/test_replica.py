"""What replicas of Ray Serve and LitServe share: films of a store that anybody may change, and batches of questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from aurora.errors import AuroraError
from aurora.inference.generation import Generation
from aurora.inference.store import FilmStore
from aurora.inference.video_model import VideoModel, load
from aurora.inference.workers import WorkerModel
from aurora.serving.replica import Question, Replica


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> VideoModel:
    return load(model_folder)


@pytest.fixture
def store(loaded: VideoModel, make_video: Callable[..., Path], tmp_path: Path) -> FilmStore:
    """A store with two films."""
    films = FilmStore(tmp_path / "films")
    for number in range(2):
        films.save(loaded.watch(make_video(tmp_path / f"{number}.mp4", 16, seed=number)), str(number))
    return films


@pytest.fixture
def replica(store: FilmStore, model_folder: Path) -> Replica:
    return Replica(store.folder, WorkerModel(str(model_folder)))


@pytest.mark.slow
def test_questions_of_a_batch_have_the_answers_that_each_has_alone(replica: Replica, loaded: VideoModel,
                                                                   store: FilmStore) -> None:
    asked = [Question(film=str(number % 2), question=f"What {number}?", max_tokens=3 + number % 3)
             for number in range(6)]
    answers = replica.answer([(replica.film(question.film), question) for question in asked])
    for question, told in zip(asked, answers, strict=True):
        film = store.open(loaded, question.film)
        options = Generation(max_new_tokens=question.max_tokens)
        assert told == {"film": question.film, "answer": film.ask(question.question, options=options),
                        "frames": film.frames, "seconds": film.seconds}


@pytest.mark.slow
def test_a_question_that_cannot_be_asked_is_the_error_of_no_other(replica: Replica) -> None:
    asked = [Question(film="0", question="What?", max_tokens=2), Question(film="1", question="  ", max_tokens=2)]
    right, wrong = replica.answer([(replica.film(question.film), question) for question in asked])
    assert "answer" in right and wrong == {"error": "the question is empty"}


@pytest.mark.slow
def test_a_film_that_is_replaced_is_read_again(replica: Replica, loaded: VideoModel, store: FilmStore) -> None:
    before = replica.film("0")
    assert replica.film("0") is before
    store.save(store.open(loaded, "1"), "0")
    assert replica.film("0").id == store.info("1")["id"] != before.id
    store.remove("0")
    with pytest.raises(AuroraError, match="has no film '0'"):
        replica.film("0")


@pytest.mark.parametrize("body", [{"film": "a"}, {"film": "a", "question": ""}, {"film": "a", "question": "b", "x": 1},
                                  {"film": "a", "question": "b", "max_tokens": 10**6}])
def test_a_request_that_asks_for_more_than_there_is_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Question.model_validate(body)
