"""What every registered prompt must show."""

import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Text, Turn, Visual
from aurora.registry import PROMPT

TURNS = [Turn("What is it?", "A cat."), Turn("How old?", "Two years.")]
every_prompt = pytest.mark.parametrize("name", PROMPT.known())


def layout(name, turns, visual=True):
    return PROMPT.build({"name": name}).layout(turns, visual=visual)


@every_prompt
@pytest.mark.parametrize("visual", [True, False])
def test_there_is_one_place_for_visual_tokens_exactly_when_there_is_something_to_see(name, visual):
    assert sum(isinstance(piece, Visual) for piece in layout(name, TURNS, visual)) == visual


@every_prompt
@pytest.mark.parametrize("visual", [True, False])
def test_the_answers_and_their_stops_alone_are_learned(name, visual):
    learned = [piece.text for piece in layout(name, TURNS, visual) if isinstance(piece, Text) and piece.learned]
    assert learned == [" A cat.\n\n", " Two years.\n\n"]


@every_prompt
def test_a_conversation_without_anything_to_see_is_plain_chat(name):
    text = "".join(piece.text for piece in layout(name, TURNS, visual=False))
    assert text == "User: What is it?\n\nAssistant: A cat.\n\nUser: How old?\n\nAssistant: Two years.\n\n"


@every_prompt
@pytest.mark.parametrize("visual", [True, False])
def test_tags_that_are_still_there_are_words(name, visual):
    pieces = layout(name, [Turn("What does <video> do?", "<image> shows.")], visual)
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    assert text.endswith("What does <video> do?\n\nAssistant: <image> shows.\n\n")


@every_prompt
def test_images_between_which_text_stands_are_all_laid_out(name):
    turns = [TURNS[0]._replace(places=(0, 4, 4)), TURNS[1]._replace(places=(3,))]
    assert sum(piece.media for piece in layout(name, turns) if isinstance(piece, Visual)) == 4


@every_prompt
@pytest.mark.parametrize("visual", [True, False])
def test_an_open_turn_ends_where_the_model_is_to_speak(name, visual):
    # a prompt that mixes forms may choose by the answer, as long as it asks as some answer was taught
    answered = [layout(name, [TURNS[0], Turn("How old?", f"{years} years.")], visual) for years in range(20)]
    assert layout(name, [TURNS[0], Turn("How old?")], visual) in [pieces[:-1] for pieces in answered]


@every_prompt
def test_the_stop_appears_nowhere_inside_an_answer(name):
    pieces = layout(name, [Turn("q", "a\n\nb")])
    assert [piece.text.count("\n\n") for piece in pieces if isinstance(piece, Text) and piece.learned] == [1]


@every_prompt
@pytest.mark.parametrize("turns", [[], [Turn("a"), Turn("b", "c")]])
def test_a_conversation_that_cannot_be_laid_out_is_refused(name, turns):
    with pytest.raises(AuroraError):
        layout(name, turns)


@every_prompt
def test_what_stands_before_the_visual_tokens_depends_on_the_questions_unless_the_prompt_is_reusable(name):
    conversations = [[Turn(f"Question {number}?")] for number in range(20)]
    leading = {tuple(pieces[: pieces.index(Visual())]) for pieces in (layout(name, turns) for turns in conversations)}
    assert (len(leading) == 1) == PROMPT.get(name).reusable


@every_prompt
@pytest.mark.parametrize("visual", [True, False])
def test_timestamps_stand_in_front_of_frames_and_change_no_piece(name, visual):
    stamped = PROMPT.build({"name": name, "timestamps": True})
    assert stamped.timestamps and not PROMPT.build({"name": name}).timestamps
    assert stamped.layout(TURNS, visual=visual) == layout(name, TURNS, visual)


@every_prompt
def test_timestamps_are_on_or_off(name):
    with pytest.raises(AuroraError, match="timestamps"):
        PROMPT.build({"name": name, "timestamps": "h:mm"})
