"""Answers are checked against the drawn pixels, not against the scene that made them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from datamodules.blocks.conversations import BARE_SHARE, SHORT, image_caption_turn, question_turns, video_caption_turn
from datamodules.blocks.families import FAMILIES, Question, drawn_family, questions
from datamodules.blocks.render import draw
from datamodules.blocks.scenes import BACKGROUNDS, COLORS, PARTS, Scene, SceneMaker, of_split

SEEDS = range(12)


def made(family: str, seed: int) -> tuple[Scene, Question]:
    rng = random.Random(seed)
    while True:
        scene = FAMILIES[family].make(SceneMaker(rng))
        question = FAMILIES[family].ask(scene, rng)
        if question is not None:
            return scene, question


def pixels_of(scene: Scene, color: str, time: float) -> np.ndarray:
    """[n, 2] rows and columns of the pixels of a colour."""
    return np.argwhere((draw(scene, time) == COLORS[color]).all(-1))


def times(scene: Scene) -> list[float]:
    return [quarter / 4 for quarter in range(int(4 * scene.duration))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_has_four_different_options(family: str) -> None:
    for seed in SEEDS:
        _, question = made(family, seed)
        assert len({question.answer, *question.wrong}) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_the_direction_is_that_of_the_pixels(seed: int) -> None:
    scene, question = made("moving_direction", seed)
    color = question.text.split()[-3]
    down, right = pixels_of(scene, color, scene.duration - 0.1).mean(0) - pixels_of(scene, color, 0.0).mean(0)
    seen = ("right" if right > 0 else "left") if abs(right) > abs(down) else ("down" if down > 0 else "up")
    assert question.answer == seen


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_moving_color_moves(seed: int) -> None:
    scene, question = made("moving_attribute", seed)
    moved = set()
    for color in {thing.look.color for thing in scene.things}:
        before, after = pixels_of(scene, color, 0.0), pixels_of(scene, color, scene.duration - 0.1)
        if np.abs(before.mean(0) - after.mean(0)).max() > 10:
            moved.add(color)
    assert moved == {question.answer}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_and_the_last_to_appear_are_those_of_the_pixels(seed: int) -> None:
    scene, question = made("action_order", seed)
    first_seen = {}
    for time in times(scene):
        for thing in scene.things:
            if str(thing.look) not in first_seen and len(pixels_of(scene, thing.look.color, time)):
                first_seen[str(thing.look)] = time
    order = sorted(first_seen, key=lambda look: first_seen[look])
    assert question.answer == (order[0] if "first" in question.text else order[-1])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_background_changes_as_the_answer_says(seed: int) -> None:
    scene, question = made("scene_transition", seed)
    names = {color: name for name, color in BACKGROUNDS.items()}
    corners = [names[tuple(int(value) for value in draw(scene, time)[0, 0])] for time in (0.0, scene.duration - 0.1)]
    assert question.answer == " to ".join(corners)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_new_color_was_not_there_before(seed: int) -> None:
    scene, question = made("state_change", seed)
    assert not len(pixels_of(scene, question.answer, 0.0))
    assert len(pixels_of(scene, question.answer, scene.duration - 0.1))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_hides_is_seen_first_and_gone_last(seed: int) -> None:
    scene, question = made("object_hidden", seed)
    gone = {str(thing.look) for thing in scene.things if not len(pixels_of(scene, thing.look.color, scene.duration))}
    assert gone == {question.answer}
    assert len(pixels_of(scene, question.answer.split()[0], 0.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_needle_is_seen_for_two_seconds_at_most(seed: int) -> None:
    scene, question = made("needle", seed)
    color = question.answer.split()[0]
    assert 1.5 <= sum(len(pixels_of(scene, color, time)) > 0 for time in times(scene)) / 4 <= 2.25


@pytest.mark.parametrize("seed", range(40))
def test_the_part_in_which_a_thing_is_there_is_that_of_the_pixels(seed: int) -> None:
    scene, question = made("action_localization", seed)
    color = question.text.split()[-4]
    moments = (0.0, 0.5, 0.98)
    there = tuple(bool(len(pixels_of(scene, color, moment * scene.duration))) for moment in moments)
    expected = {(True, False, False): PARTS[0], (False, True, False): PARTS[1], (False, False, True): PARTS[2],
                (True, True, True): "all the time"}
    assert question.answer == expected[there]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_scenes_of_every_split(family: str) -> None:
    splits = [made(family, seed)[0].split for seed in range(200)]
    assert 0 < splits.count("validation") < 60
    assert 0 < splits.count("test") < 60


def test_scenes_that_look_alike_are_of_one_split_whatever_happens_in_them() -> None:
    rng = random.Random(0)
    scene = of_split("test", lambda: FAMILIES["moving_count"].make(SceneMaker(rng)))
    things = tuple(SceneMaker(rng).moving(thing, "horizontal") for thing in scene.things[::-1])
    assert replace(scene, things=things, duration=3.0).split == "test"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_caption_counts_the_things_and_those_that_move(seed: int) -> None:
    scene, question = made("moving_count", seed)
    assert f". Objects: 3. Moving: {question.answer}. " in video_caption_turn(scene).answer
    still = SceneMaker(random.Random(seed)).plain(1 + seed % 4)
    assert image_caption_turn(still).answer.endswith(f" Objects: {1 + seed % 4}.")


def test_a_letter_is_the_answer_where_the_question_asks_for_one() -> None:
    rng = random.Random(0)
    letters = []
    while len(letters) < 100:
        scene, _ = made("attribute", rng.randrange(10**9))
        asked = {(question.text, question.answer) for _ in range(20) for question in questions(scene, rng)}
        for turn in question_turns(scene, rng, 4, open_share=0.0):
            if turn.question.endswith("letter from the given choices directly."):
                text, *lines = turn.question.splitlines()
                named = {line[0]: line[3:] for line in lines[:-1]}
                assert (text, named[turn.answer]) in asked
                letters.append(turn.answer)
    assert all(10 < letters.count(letter) < 40 for letter in "ABCD")


def test_every_place_among_the_options_is_right_equally_often() -> None:
    rng = random.Random(0)
    places = []
    while len(places) < 400:
        scene = FAMILIES["attribute"].make(SceneMaker(rng))
        for turn in question_turns(scene, rng, 4, open_share=0.0):
            if turn.answer in tuple("ABCD"):
                continue
            options = [line[4:] for line in turn.question.splitlines() if line.startswith("(")]
            places.append(options.index(turn.answer))
    assert all(0.18 < places.count(place) / len(places) < 0.32 for place in range(4))


def test_no_count_of_what_moves_is_rare() -> None:
    """Of the scenes that are not made for the question, nearly all answer 0 or 1."""
    rng, counts = random.Random(0), []
    for _ in range(2000):
        family = drawn_family(rng)
        turns = question_turns(FAMILIES[family].make(SceneMaker(rng)), rng, 6, first=family, open_share=1.0)
        counts += [turn.answer for turn in turns if turn.question.startswith("How many objects move")]
    assert all(0.12 < counts.count(count) / len(counts) < 0.5 for count in "0123")


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_the_conversations_begin_with_what_the_scene_was_made_for(family: str) -> None:
    rng = random.Random(0)
    firsts = 0
    for _ in range(60):
        scene, _ = made(family, rng.randrange(10**9))
        own = {question.text for _ in range(20) for question in questions(scene, rng, [family])}
        turns = question_turns(scene, rng, 6, first=family, open_share=1.0)
        firsts += turns[0].question.removesuffix(f" {SHORT}") in own
    assert firsts >= 30


def test_some_questions_without_options_say_nothing_of_how_to_answer() -> None:
    rng, bare = random.Random(0), []
    for _ in range(300):
        turns = question_turns(FAMILIES[drawn_family(rng)].make(SceneMaker(rng)), rng, 4, open_share=1.0)
        bare += [not turn.question.endswith(SHORT) for turn in turns]
        assert all(turn.question.removesuffix(f" {SHORT}").endswith("?") for turn in turns)
    assert sum(bare) / len(bare) == pytest.approx(BARE_SHARE, abs=0.05)
