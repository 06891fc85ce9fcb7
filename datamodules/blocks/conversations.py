"""Conversations about scenes, as training samples hold them: captions, open questions, multiple-choice questions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aurora.evaluation.prompts import CAPTION_IMAGE, CAPTION_VIDEO, multiple_choice
from aurora.interfaces import Turn

from .families import FAMILIES, Question, Split, questions
from .scenes import Scene
from .words import image_caption, video_caption

SHORT = "Answer the question using a single word or phrase."
STILL = tuple(name for name, family in FAMILIES.items() if family.still)


def choice_turn(question: Question, rng: random.Random) -> Turn:
    """The question with its four options; the answer is the option's text: letters stayed at chance in the minutes that
    were tried."""
    return Turn(multiple_choice(question.text, question.options(rng)), question.answer)


def open_turn(question: Question) -> Turn:
    """The question without options."""
    return Turn(f"{question.text} {SHORT}", question.answer)


def question_turns(scene: Scene, rng: random.Random, split: Split, most: int, *, families: Sequence[str] = (),
                   first: str | None = None, open_share: float = 0.25) -> list[Turn]:
    """Up to `most` different questions about a scene in drawn order, one of the family `first` among them; the rest
    are drawn from `families`."""
    names = tuple(families) or tuple(FAMILIES)
    # asked twice, since a family may ask about one thing or another
    asked = {question.text: question for _ in range(2) for question in questions(scene, rng, split, names)}
    drawn = rng.sample(sorted(asked.values()), len(asked))
    chosen = sorted(drawn, key=lambda question: question.family != first)[:most]
    rng.shuffle(chosen)
    return [open_turn(question) if rng.random() < open_share else choice_turn(question, rng) for question in chosen]


def image_caption_turn(scene: Scene) -> Turn:
    """A caption of a still scene."""
    return Turn(CAPTION_IMAGE, image_caption(scene, 0.0))


def video_caption_turn(scene: Scene) -> Turn:
    """A caption of all that happens."""
    return Turn(CAPTION_VIDEO, video_caption(scene))


def to_json(turns: Sequence[Turn], marker: str) -> list[dict[str, str]]:
    """The conversation in LLaVA's form; `marker` is `<image>`, `<video>`, or nothing for text alone."""
    messages: list[dict[str, str]] = []
    for index, turn in enumerate(turns):
        before = f"{marker}\n" if marker and index == 0 else ""
        messages.append({"from": "human", "value": before + turn.question})
        messages.append({"from": "gpt", "value": turn.answer or ""})
    return messages
