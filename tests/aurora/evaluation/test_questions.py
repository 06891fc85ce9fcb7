from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora.errors import AuroraError
from aurora.evaluation.questions import Question, read_questions, wrong_videos

LINE = {"id": "1", "video": "videos/a.mp4", "family": "colour", "question": "Which?", "options": ["red", "blue"],
        "answer": 1}


def write(folder: Path, *lines: dict | str) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    return folder


def choice(id: str, video: str, answer: str, *, family: str = "colour", question: str = "Which?") -> Question:
    return Question(id, video, family, question, ("red", "blue", "green", "grey"), answer)


def test_a_line_with_options_answers_by_index(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, LINE))
    assert (question.answer, question.right, question.options) == ("blue", 1, ("red", "blue"))


def test_a_line_without_options_is_an_open_question(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, LINE | {"options": [], "answer": "a red ball"}))
    assert (question.prompt, question.answer) == ("Which?", "a red ball")


def test_a_text_may_hold_any_character(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, LINE | {"question": "One\u2028or\x85two\n🙂?"}))
    assert question.question == "One\u2028or\x85two\n🙂?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "'id' must be a text"),
        ({"question": None}, "'question' must be a text"),
        ({"video": "../secret.mp4"}, "inside the folder"),
        ({"video": "/etc/passwd"}, "inside the folder"),
        ({"options": ["red"]}, "2 to 26 different texts"),
        ({"options": ["red", "red"]}, "2 to 26 different texts"),
        ({"options": "red"}, "list of texts"),
        ({"answer": 2}, "index of an option, 0 to 1"),
        ({"answer": "blue"}, "index of an option, 0 to 1"),
        ({"answer": True}, "index of an option"),
        ({"options": [], "answer": 1}, "must be a text"),
    ],
)
def test_a_line_outside_the_format_is_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(AuroraError, match=rf"line 2: .*{message}"):
        read_questions(write(tmp_path, LINE, LINE | {"id": "2"} | change))


@pytest.mark.parametrize("line", ["{", "[]", "3"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(AuroraError, match="line 2"):
        read_questions(write(tmp_path, LINE, line))


def test_an_id_is_used_once(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="line 2: the id '1' was used before"):
        read_questions(write(tmp_path, LINE, LINE))


@pytest.mark.parametrize("lines", [(), ("",)])
def test_an_empty_file_holds_no_question(tmp_path: Path, lines: tuple) -> None:
    with pytest.raises(AuroraError, match="holds no question"):
        read_questions(write(tmp_path, *lines))


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"has no questions\.jsonl"):
        read_questions(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(AuroraError, match=r"line 1: .*utf-8.*byte 0xff"):
        read_questions(tmp_path)


def test_a_wrong_video_answers_the_same_question_otherwise() -> None:
    questions = [choice("1", "a", "red"), choice("2", "b", "red"), choice("3", "c", "blue"),
                 choice("4", "d", "green", question="Which other?")]
    assert wrong_videos(questions, seed=0)["1"] == "c"


def test_a_wrong_video_is_of_the_same_family_before_any_other() -> None:
    questions = [choice("1", "a", "red"), choice("2", "b", "left", family="direction", question="Where?"),
                 choice("3", "c", "blue", question="Which other?")]
    assert wrong_videos(questions, seed=0)["1"] == "c"


def test_another_family_is_better_than_no_wrong_video() -> None:
    questions = [choice("1", "a", "red"), choice("2", "b", "left", family="direction", question="Where?")]
    assert wrong_videos(questions, seed=0)["1"] == "b"


def test_a_video_where_the_answer_is_also_right_is_never_the_wrong_one() -> None:
    # b is of the same family, but there the same question has the same answer
    questions = [choice("1", "a", "red"), choice("2", "b", "red"), choice("3", "b", "blue", question="Which other?"),
                 choice("4", "c", "left", family="direction", question="Where?")]
    assert wrong_videos(questions, seed=0)["1"] == "c"


def test_a_question_without_a_wrong_video_is_left_out() -> None:
    assert wrong_videos([choice("1", "a", "red"), choice("2", "a", "blue"), choice("3", "b", "Red ")], seed=0) == {
        "2": "b"}


def test_wrong_videos_are_a_function_of_the_seed_and_not_of_the_order() -> None:
    questions = [choice(str(number), f"v{number}", ["red", "blue", "green"][number % 3]) for number in range(60)]
    first = wrong_videos(questions, seed=1)
    assert first == wrong_videos(questions[::-1], seed=1) != wrong_videos(questions, seed=2)


def test_a_byte_order_mark_is_no_part_of_the_first_question(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(LINE).encode() + b"\n")
    assert read_questions(tmp_path)[0].id == "1"


def test_half_of_a_surrogate_pair_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"line 2: .*surrogates not allowed"):
        read_questions(write(tmp_path, LINE, json.dumps(LINE | {"id": "2", "question": "\ud83d"})))
