"""Which tags in questions stand for media, and which are words."""

from __future__ import annotations

import pytest

from aurora.errors import AuroraError, BadSample
from aurora.interfaces import Turn
from aurora.markers import place_media, plain_question


def placed(*questions: str, kind: str = "image", media: int = 1) -> tuple[tuple[str, tuple[int, ...]], ...]:
    turns = place_media([Turn(question, "<image> said") for question in questions], kind, media)
    assert all(turn.answer == "<image> said" for turn in turns)
    return tuple((turn.question.strip(), turn.places) for turn in turns)


@pytest.mark.parametrize("question", [
    "Which attribute of the HTML <video> element loops it?", "What does <image> mean in a prompt of LLaVA?",
    "<video src=x></video>", "<video>\n<source src=a.mp4>\n</video>\nWhat is wrong?", "<images>", "a\n<image>\nb",
    "Why <image>, not <video>, here?", "",
])
def test_a_tag_in_a_text_that_shows_nothing_stays(question: str) -> None:
    assert placed(question, media=0) == ((question, ()),)


@pytest.mark.parametrize("question", ["<image>\nWhat?", "<image> What?", "<image>What?", "What?\n<video>", "<image>",
                                      "<image><image>\nWhich?", " \n<video>\nWhat?"])
def test_a_marker_without_media_is_an_error(question: str) -> None:
    with pytest.raises(BadSample, match="no image or video is named"):
        placed("first", question, media=0)


@pytest.mark.parametrize(("value", "left"), [
    ("<image>\nWhat?", "What?"), ("What?\n<image>", "What?"), ("In <image> what moves?", "In what moves?"),
    ("<image>What?", "What?"), ("a<image>b", "a b"), ("<image>", ""), ("no  marker", "no  marker"),
    ("<image>\nWhat does an <image> tag do?", "What does an <image> tag do?"),
    ("<image>\nWhat does the <video> tag do?", "What does the <video> tag do?"),
    ("What does the <video> tag do?", "What does the <video> tag do?"), ("<video>\nWhat moves?", "What moves?"),
])
def test_the_marker_of_one_image_is_removed_and_words_stay(value: str, left: str) -> None:
    assert placed(value) == ((left, ()),)


@pytest.mark.parametrize("value", ["<video>\nWhat?", "<image>\nWhat?", "What?"])
def test_a_video_may_be_marked_as_an_image(value: str) -> None:
    assert placed(value, kind="video") == (("What?", ()),)
    assert placed("In <image> what moves?", kind="video") == (("In what moves?", ()),)
    element = "Describe <image>a cat</image> in HTML"
    assert placed(element, kind="video") == ((element, ()),)


@pytest.mark.parametrize(("questions", "media"), [
    (["<image><image>\nWhich?"], 1), (["<image>\nWhich?"], 2), (["<image>\nWhich?", "<image>\nAnd?"], 3),
    (["<image>\n<image>\n<image>\nWhich?"], 2), (["<video>\n<video>\nWhich?"], 2),
])
def test_another_number_of_markers_than_media_is_an_error(questions: list[str], media: int) -> None:
    with pytest.raises(BadSample, match=rf"stands in the questions \d times, but the sample has {media} image"):
        placed(*questions, media=media)


@pytest.mark.parametrize("value", ["<image><image>\nWhich?", "<image>\n<image>\nWhich?", "Which?\n<image>\n<image>",
                                   "<video>\nWhich?", "Which?"])
def test_images_that_stand_together_have_no_places(value: str) -> None:
    assert placed(value, media=2) == (("Which?", ()),)


def test_images_between_which_text_stands_have_their_places() -> None:
    ((question, places),) = placed("A: <image> B: <image>\nWhich?", media=2)
    assert (question, places) == ("A: B: \nWhich?", (3, 6))
    (first, second) = placed("<image>\nWhat?", "<image>\nAnd here?", media=2)
    assert (first[1], second[1]) == ((0,), (0,))


@pytest.mark.parametrize(("question", "media", "left"), [
    ("<image>\nWhat is a <video> tag?", 1, "What is a <video> tag?"),
    ("What is shown? <image>\nA. one\nB. two", 1, "What is shown? \nA. one\nB. two"),
    ("In <video> what moves?", 1, "In what moves?"),
    ("<image><image>\nWhat?", 1, "What?"),
    ("<image>\nWhat?", 0, "<image>\nWhat?"),
    ("<video>\nWhat does the <image> tag mean?", 1, "What does the <image> tag mean?"),
])
def test_a_question_is_asked_as_it_is_trained_on(question: str, media: int, left: str) -> None:
    assert plain_question(question, media).strip() == left


def test_a_question_that_is_not_text_is_refused() -> None:
    with pytest.raises(AuroraError, match="is not text"):
        plain_question("caf\udce9?", 1)
