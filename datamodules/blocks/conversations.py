"""Scenes in words: captions, accounts of single frames, and conversations as training samples hold them."""

import random
from collections.abc import Sequence

from aurora.evaluation.prompts import CAPTION_IMAGE, CAPTION_VIDEO, lettered_choice, multiple_choice, option_letter
from aurora.interfaces import Turn

from .families import FAMILIES, Question, questions
from .scenes import Scene, Thing

SHORT = "Answer the question using a single word or phrase."
OPEN_SHARE = 0.45
"""Of the questions in training: without options, so that more of them fit into a conversation of a length."""
BARE_SHARE = 0.4
"""Of the questions without options: without a word on how to answer, as people ask them."""
LETTER_SHARE = 0.15
"""Of the questions with options: answered by a letter."""
STILL = tuple(name for name, family in FAMILIES.items() if family.still)


def question_turns(scene: Scene, rng: random.Random, most: int, *, families: Sequence[str] = (),
                   first: str | None = None, open_share: float = OPEN_SHARE,
                   letter_share: float = LETTER_SHARE) -> list[Turn]:
    """Up to `most` different questions about a scene, one of the family `first` among them, which comes first in half
    of the conversations; the rest are drawn from `families`. Without options is the share `open_share`; of those
    with options, `letter_share` ask for a letter, the others for the option's text."""
    names = tuple(families) or tuple(FAMILIES)
    # asked twice, since a family may ask about one thing or another
    asked = {question.text: question for _ in range(2) for question in questions(scene, rng, names)
             if question.family == first or not _usual(question, rng)}
    drawn = rng.sample(sorted(asked.values()), len(asked))
    chosen = sorted(drawn, key=lambda question: question.family != first)[:most]
    if rng.random() < 0.5:
        rng.shuffle(chosen)
    return [_question_turn(question, rng, open_share, letter_share) for question in chosen]


def _usual(question: Question, rng: random.Random) -> bool:
    """Whether to leave a question out: nothing moves in most scenes that were made for another family, and a model to
    which that is said too often says it of all."""
    return question.family == "moving_count" and question.answer in ("0", "1") and rng.random() < 0.9


def _question_turn(question: Question, rng: random.Random, open_share: float, letter_share: float) -> Turn:
    if rng.random() < open_share:
        bare = rng.random() < BARE_SHARE
        return Turn(question.text if bare else f"{question.text} {SHORT}", question.answer)
    return (letter_turn if rng.random() < letter_share else text_turn)(question, rng)


def text_turn(question: Question, rng: random.Random) -> Turn:
    """With options in a drawn order, answered by the text of one."""
    return Turn(multiple_choice(question.text, question.options(rng)), question.answer)


def letter_turn(question: Question, rng: random.Random) -> Turn:
    """With options in a drawn order, answered by the letter of one."""
    options = question.options(rng)
    return Turn(lettered_choice(question.text, options), option_letter(options.index(question.answer)))


CHOICES = {"text": text_turn, "letter": letter_turn}
"""How a question with options is put and answered."""


def image_caption_turn(scene: Scene) -> Turn:
    """A caption of a still scene: how many objects there are, and what is where."""
    parts = [f"a {thing} at the {place}" for thing, place in _shown(scene, 0.0)]
    if scene.wall is not None:
        parts.append("a wall")
    content = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]])) or "nothing"
    return Turn(CAPTION_IMAGE, f"A {scene.background_at(0.0)} scene with {content}. Objects: {len(scene.seen(0.0))}.")


def video_caption_turn(scene: Scene) -> Turn:
    """A caption of all that happens: how many things there are and how many of them move, then one sentence per thing,
    those that move first, in the order of their beginning."""
    things = sorted(scene.things, key=lambda thing: (not thing.moves, thing.appears,
                                                     thing.place(0, scene.duration)[::-1]))
    parts = [f"The scene is {scene.background}.",
             f"Objects: {len(things)}. Moving: {sum(thing.moves for thing in things)}.",
             *(_story(thing, scene) for thing in things)]
    if scene.new_background is not None:
        parts.append(f"The background turns {scene.new_background}.")
    return Turn(CAPTION_VIDEO, " ".join(parts))


def place_name(x: float, y: float) -> str:
    """The ninth of the frame that a point lies in."""
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    column = "left" if x < 0.36 else "right" if x > 0.64 else ""
    return f"{row} {column}".strip() or "center"


def frame_account(scene: Scene, time: float) -> str:
    """What one frame shows, in as few words as possible, for samples of text alone."""
    parts = [f"{thing} {place}" for thing, place in _shown(scene, time)]
    if scene.wall is not None:
        parts.append("wall")
    return f"{scene.background_at(time)}: {', '.join(parts) or 'nothing'};"


def _shown(scene: Scene, time: float) -> list[tuple[str, str]]:
    """Look and place of each thing that can be seen, top to bottom and left to right."""
    things = sorted(scene.seen(time), key=lambda thing: thing.place(time, scene.duration)[::-1])
    return [(f"{thing.color_at(time)} {thing.look.shape}", place_name(*thing.place(time, scene.duration)))
            for thing in things]


def _story(thing: Thing, scene: Scene) -> str:
    name = f"A {thing.look}"
    if thing.look == scene.hidden:
        return f"{name} goes behind the wall."
    if thing.moves:
        return f"{name} moves {thing.direction}."
    if thing.new_color:
        return f"{name} turns {thing.new_color}."
    part = thing.part(scene.duration)
    if part:
        return f"{name} is there {part}."
    if thing.vanishes < scene.duration:
        return f"{name} comes and goes."
    if thing.appears > 0:
        return f"{name} appears."
    return f"{name} rests at the {place_name(*thing.start)}."
