"""Every form on literal strings. Learned text stands between « and », the visual tokens are ◼."""

import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Text, Turn, Visual
from aurora.registry import PROMPT

ONE = [Turn("What moves?", "A red ball.")]
SHORT = [Turn("What moves?\nAnswer the question using a single word or phrase.", "ball")]
TWO = [Turn("What moves?", "A ball."), Turn("Where to?", "Left.")]
OPEN = [Turn("What moves?", "A ball."), Turn("Where to?")]


def drawn(form, turns, visual=True, **options):
    pieces = PROMPT.build({"name": form, **options}).layout(turns, visual=visual)
    return "".join((f"«{piece.text}»" if piece.learned else piece.text) if isinstance(piece, Text) else "◼"
                   for piece in pieces)


@pytest.mark.parametrize(("turns", "expected"), [
    (ONE, "User: What moves?\n◼\nWhat moves?\n\nAssistant:« A red ball.\n\n»"),
    (SHORT, "User: What moves?\n◼\nWhat moves?\nAnswer the question using a single word or phrase.\n\nAssistant:"
            "« ball\n\n»"),
    (TWO, "User: What moves?\nWhere to?\n◼\nWhat moves?\n\nAssistant:« A ball.\n\n»User: Where to?\n\nAssistant:"
          "« Left.\n\n»"),
    (OPEN, "User: What moves?\nWhere to?\n◼\nWhat moves?\n\nAssistant:« A ball.\n\n»User: Where to?\n\nAssistant:"),
])
def test_sandwich_reads_every_question_before_the_visual_tokens(turns, expected):
    assert drawn("sandwich", turns) == expected


def test_sandwich_drops_the_request_for_a_short_answer_of_every_turn_from_the_leading_copy_only():
    short = "Answer the question using a single word or phrase."
    turns = [Turn(f"Which? {short}", "a"), Turn(f"{short} Why?", "b")]
    assert drawn("sandwich", turns) == (
        f"User: Which?\nWhy?\n◼\nWhich? {short}\n\nAssistant:« a\n\n»User: {short} Why?\n\nAssistant:« b\n\n»")


@pytest.mark.parametrize(("turns", "expected"), [
    (ONE, "User: ◼\nWhat moves?\n\nAssistant:« A red ball.\n\n»"),
    (TWO, "User: ◼\nWhat moves?\n\nAssistant:« A ball.\n\n»User: Where to?\n\nAssistant:« Left.\n\n»"),
    ([Turn("What moves?")], "User: ◼\nWhat moves?\n\nAssistant:"),
])
def test_image_first_puts_nothing_but_the_speaker_before_the_visual_tokens(turns, expected):
    assert drawn("image_first", turns) == expected


def test_generic_says_its_text_and_then_asks():
    assert drawn("generic", ONE) == ("User: Look closely and remember what you see. A question follows.\n◼\n"
                                     "What moves?\n\nAssistant:« A red ball.\n\n»")
    assert drawn("generic", OPEN, text="See:") == (
        "User: See:\n◼\nWhat moves?\n\nAssistant:« A ball.\n\n»User: Where to?\n\nAssistant:")


@pytest.mark.parametrize("text", ["", " x", "x\n", "a\n\nb"])
def test_generic_refuses_a_text_that_would_break_the_form(text):
    with pytest.raises(AuroraError, match="generic"):
        PROMPT.build({"name": "generic", "text": text})


PLACED = [Turn("A:  B: \nWhich?", "B.", (3, 6)), Turn("And C: D?", "D.", (7,))]


@pytest.mark.parametrize(("form", "before"), [("image_first", ""), ("generic", "See:\n"),
                                              ("sandwich", "A:  B: \nWhich?\nAnd C: D?\n")])
def test_images_between_which_text_stands_are_at_their_places(form, before):
    options = {"text": "See:"} if form == "generic" else {}
    assert drawn(form, PLACED, **options) == (
        f"User: {before}A:\n◼\nB:\n◼\nWhich?\n\nAssistant:« B.\n\n»User: And C:\n◼\nD?\n\nAssistant:« D.\n\n»")


def test_images_that_touch_are_one_place_of_several_and_may_end_a_question():
    pieces = PROMPT.build({"name": "image_first"}).layout([Turn("Now: ", "x", (0, 0, 5))], visual=True)
    assert [piece.media if isinstance(piece, Visual) else piece.text for piece in pieces[:5]] == [
        "User: ", 2, "\nNow:\n", 1, "\n\nAssistant:"]


def test_without_anything_to_see_places_do_not_matter():
    assert drawn("image_first", [Turn("A: B?", "x", (3,))], visual=False) == "User: A: B?\n\nAssistant:« x\n\n»"


def test_a_blank_line_inside_a_turn_becomes_a_line_break_because_it_would_stop_the_answer():
    assert drawn("image_first", [Turn("a\n\n\nb", "one\n \ntwo\n\n")]) == "User: ◼\na\nb\n\nAssistant:« one\ntwo\n\n»"


def forms_of(prompt, conversations):
    """How many conversations the prompt lays out as generic; all others must be as sandwich."""
    generic, sandwich = (PROMPT.build({"name": name}) for name in ("generic", "sandwich"))
    drawn = [prompt.layout(turns, visual=True) for turns in conversations]
    as_generic = [pieces == generic.layout(turns, visual=True)
                  for pieces, turns in zip(drawn, conversations, strict=True)]
    assert all(same or pieces == sandwich.layout(turns, visual=True)
               for same, pieces, turns in zip(as_generic, drawn, conversations, strict=True))
    return sum(as_generic)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_mixed_lays_its_share_of_conversations_out_as_generic_and_the_rest_as_sandwich(share):
    conversations = [[Turn(f"Question {number}?", "Yes.")] for number in range(400)]
    prompt = PROMPT.build({"name": "mixed", "generic_share": share})
    assert forms_of(prompt, conversations) == pytest.approx(400 * share, abs=0 if share in (0, 1) else 40)


def test_mixed_draws_for_one_question_with_many_answers_too():
    conversations = [[Turn("Describe the video.", f"Scene {number}.")] for number in range(400)]
    assert 160 < forms_of(PROMPT.build({"name": "mixed"}), conversations) < 240


def test_mixed_lays_a_conversation_out_the_same_way_every_time():
    first, second = (PROMPT.build({"name": "mixed"}).layout(TWO, visual=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_mixed_refuses_a_share_that_is_none(share):
    with pytest.raises(AuroraError, match="generic_share"):
        PROMPT.build({"name": "mixed", "generic_share": share})
