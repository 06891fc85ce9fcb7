from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aurora.inference.session import Session
from rich.console import Console

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.evaluation.predictions import Prediction, Task
from aurora.evaluation.questions import Question, read_questions
from aurora.evaluation.run import Protocol, evaluate
from aurora.evaluation.scoring import score_options
from aurora.evaluation.summary import render, summarise
from aurora.inference.generation import Generation
from aurora.model import AuroraModel

PROTOCOL = Protocol(choice=Generation(max_new_tokens=6), open=Generation(max_new_tokens=10))
OPTIONS = ["red", "blue", "green", "grey"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for clip in range(3):
        make_video(folder / "videos" / f"{clip}.mp4", 6, seed=clip)
        for number, family in enumerate(("colour", "direction")):
            lines.append({"id": f"{clip}-{family}", "video": f"videos/{clip}.mp4", "family": family,
                          "question": f"Which {family}?", "options": OPTIONS, "answer": (clip + number) % 4})
        lines.append({"id": f"{clip}-open", "video": f"videos/{clip}.mp4", "family": "caption",
                      "question": "What is it?", "answer": "a square"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(model: AuroraModel, config: ModelConfig, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    return evaluate(model, config, data, output=output, **{"protocol": PROTOCOL, **options})


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n")[1:-1]]


def test_every_question_is_asked_about_its_video_and_choices_about_a_wrong_one(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    asked = {(line["id"], line["shown"]) for line in lines(tmp_path)}
    assert asked == {(f"{clip}-{family}", shown) for clip in range(3)
                     for family, shown in (("colour", "own"), ("colour", "wrong"), ("direction", "own"),
                                           ("direction", "wrong"), ("open", "own"))}
    assert all(line["video"] != f"videos/{line['id'][0]}.mp4" for line in lines(tmp_path) if line["shown"] == "wrong")


def test_predictions_are_what_a_session_answers_alone(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    session = Session.from_config(model, config)
    questions = {question.id: question for question in read_questions(data)}
    for line in lines(tmp_path):
        asked = questions[line["id"]]
        session.watch(data / line["video"])
        options = PROTOCOL.choice if asked.options else PROTOCOL.open
        assert line["answer"] == "".join(session.ask(asked.prompt, options)).strip()


def test_a_result_says_how_it_was_made(model, config, data, tmp_path) -> None:
    result = run(model, config, data, tmp_path, model_hash="abc")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {key: result[key] for key in ("model", "keep_ratio", "sampling", "prompt", "n", "chance", "failed")} == {
        "model": "abc", "keep_ratio": 0.5, "sampling": {"fps": 2.0, "frames": None, "max_frames": None},
        "prompt": {"name": "sandwich"}, "n": 6, "chance": 0.25, "failed": 0}
    assert set(result["families"]) == {"colour", "direction"} and result["open"]["n"] == 3
    assert {"torch", "python", "aurora"} <= result["versions"].keys() and result["seconds"] > 0


def test_a_stopped_run_goes_on_and_ends_with_the_same_result(model, config, data, tmp_path) -> None:
    whole = run(model, config, data, tmp_path / "whole")
    run(model, config, data, tmp_path / "cut")
    path = tmp_path / "cut" / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = len(path.read_text().split("\n")) - 2
    done: list[int] = []
    again = run(model, config, data, tmp_path / "cut", on_progress=lambda now, _: done.append(now))
    assert done[0] > before > 0
    assert again | {"seconds": 0} == whole | {"seconds": 0}
    assert sorted(map(str, lines(tmp_path / "cut"))) == sorted(map(str, lines(tmp_path / "whole")))


def test_a_finished_run_asks_nothing_again(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    done: list[int] = []
    run(model, config, data, tmp_path, on_progress=lambda now, _: done.append(now))
    assert done == []


def test_predictions_made_otherwise_are_not_added_to(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    with pytest.raises(AuroraError, match=r"keep_ratio was 0.5, is 0.25"):
        run(model, replace(config, keep_ratio=0.25), data, tmp_path)
    run(model, replace(config, keep_ratio=0.25), data, tmp_path, restart=True)


def test_a_file_of_something_else_is_not_overwritten(model, config, data, tmp_path) -> None:
    (tmp_path / "predictions.jsonl").write_text("something of value\n")
    with pytest.raises(AuroraError, match="not a file of predictions"):
        run(model, config, data, tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == "something of value\n"


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    (folder / "videos").mkdir(parents=True)
    (folder / "questions.jsonl").write_bytes((data / "questions.jsonl").read_bytes())
    whole = (data / "videos" / "0.mp4").read_bytes()
    (folder / "videos" / "0.mp4").write_bytes(whole)
    (folder / "videos" / "1.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def test_a_missing_or_broken_video_is_counted_shown_and_wrong(model, config, damaged, tmp_path) -> None:
    result = run(model, config, damaged, tmp_path / "out")
    assert (result["n"], result["failed"], result["open"]["n"]) == (6, 6, 3)
    assert {failed["video"] for failed in result["failures"]} == {"videos/1.mp4", "videos/2.mp4"}
    assert all(failed["reason"] for failed in result["failures"])


def test_what_failed_is_tried_again(model, config, damaged, data, tmp_path) -> None:
    run(model, config, damaged, tmp_path / "out")
    for name in ("1.mp4", "2.mp4"):
        (damaged / "videos" / name).write_bytes((data / "videos" / name).read_bytes())
    assert run(model, config, damaged, tmp_path / "out")["failures"] == []


def test_a_run_in_which_all_failed_has_no_result(model, config, damaged, tmp_path) -> None:
    (damaged / "videos" / "0.mp4").unlink()
    with pytest.raises(AuroraError, match=r"no video could be read.*does not exist"):
        run(model, config, damaged, tmp_path / "out")


def test_a_limit_is_spread_over_the_file(model, config, data, tmp_path) -> None:
    result = run(model, config, data, tmp_path, limit=3)
    assert {line["id"] for line in lines(tmp_path)} == {"0-colour", "1-colour", "2-colour"}
    assert result["n"] == 3


def test_how_many_are_read_together_changes_nothing(model, config, data, tmp_path) -> None:
    results = [run(model, config, data, tmp_path / str(parallel), parallel=parallel) for parallel in (1, 32)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}


@pytest.mark.parametrize("score", ["likelihood", "likelihood_per_token"])
def test_the_likeliest_option_is_the_answer(model, config, data, tmp_path, score) -> None:
    uneven = tmp_path / "data"
    shutil.copytree(data, uneven)
    text = (data / "questions.jsonl").read_text()
    (uneven / "questions.jsonl").write_text(text.replace('"grey"', '"grey, and at some other time another colour"'))
    result = run(model, config, uneven, tmp_path / "out", protocol=replace(PROTOCOL, score=score))
    session = Session.from_config(model, config)
    questions = {question.id: question for question in read_questions(uneven)}
    for line in lines(tmp_path / "out"):
        asked = questions[line["id"]]
        session.watch(uneven / line["video"])
        if asked.options:
            scores = score_options(model, session.runner, session.read_all([asked.prompt]), asked.options)
            wanted = [getattr(one, {"likelihood": "log_prob"}.get(score, "per_token")) for one in scores]
            assert line["log_probs"] == pytest.approx(wanted, rel=1e-4)
            assert line["answer"] == asked.options[wanted.index(max(wanted))]
        else:
            assert line["log_probs"] is None
            assert line["answer"] == "".join(session.ask(asked.prompt, PROTOCOL.open)).strip()
    assert (result["unparsed"], result["protocol"]["score"]) == (0, score)
    with pytest.raises(AuroraError, match="score"):
        run(model, config, uneven, tmp_path / "out")


def question(id: str, family: str, options: int) -> Question:
    return Question(id, f"{id}.mp4", family, "Which?", tuple(OPTIONS[:options]), "red")


def summary(*answers: tuple[Question, str, str | None, str | None]) -> dict[str, Any]:
    """`answers`: question, answer on its own video, answer on the wrong one, failure."""
    predictions: dict[Task, Prediction] = {}
    for asked, own, wrong, failure in answers:
        made = Prediction(asked.id, "own", asked.video, own, failure)
        predictions[made.task] = made
        if wrong is not None:
            other = replace(made, shown="wrong", answer=wrong, failure=None)
            predictions[other.task] = other
    return summarise([answer[0] for answer in answers], predictions)


def test_accuracies_count_every_question() -> None:
    result = summary(
        (question("1", "colour", 4), "(A) red", "(B) blue", None),
        (question("2", "colour", 4), "", "(A)", None),
        (question("3", "count", 2), "", "(B)", "the file is gone"),
        (question("4", "count", 2), "A man opens the door", "A", None),
    )
    assert (result["n"], result["accuracy"], result["chance"], result["wrong_video_accuracy"]) == (4, 0.25, 0.375, 0.5)
    assert (result["unparsed"], result["failed"]) == (2, 1)
    assert {name: (row["n"], row["accuracy"], row["chance"]) for name, row in result["families"].items()} == {
        "colour": (2, 0.5, 0.25), "count": (2, 0.0, 0.5)}


def test_open_questions_are_scored_apart() -> None:
    asked = Question("1", "1.mp4", "caption", "What is it?", (), "a red ball")
    result = summary((asked, "The red ball", None, None), (question("2", "colour", 4), "(B)", None, None))
    assert (result["accuracy"], result["wrong_video_accuracy"]) == (0.0, None)
    assert (result["open"]["exact_match"], result["open"]["families"]["caption"]["token_f1"]) == (1.0, 1.0)
    assert result["open"]["bleu_1"] == pytest.approx(2 / 3)  # "red" and "ball"; "The" is not "a"


def test_the_table_shows_every_family_and_what_failed() -> None:
    result = summary((question("1", "colour", 4), "(A) red", "(B)", None),
                     (question("2", "count", 4), "", None, "the file is gone"))
    text = io.StringIO()
    Console(width=120, file=text).print(render(result))
    assert all(word in text.getvalue() for word in ("colour", "count", "25.0", "100.0", "the file is gone"))
