"""The task families of Blocks world, named after those of MVBench and MLVU.

A family makes scenes in which its event can be seen, and asks about any scene in which the answer is plain.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from .scenes import AXES, BACKGROUNDS, COLORS, DIRECTIONS, PARTS, SHAPES, Axis, Look, Scene, SceneMaker, Thing

_LOOKS = [str(Look(color, shape)) for color in COLORS for shape in SHAPES]


class Question(NamedTuple):
    """A question about a scene, its answer, and three wrong ones."""

    family: str
    text: str
    answer: str
    wrong: tuple[str, str, str]

    def options(self, rng: random.Random) -> list[str]:
        """The four options in a drawn order."""
        options = [self.answer, *self.wrong]
        rng.shuffle(options)
        return options


class Family(NamedTuple):
    """How to make a scene for a question, and how to ask it of any scene (None where the answer is not plain)."""

    make: Callable[[SceneMaker], Scene]
    ask: Callable[[Scene, random.Random], Question | None]
    weight: int = 2  # how often training shows its scenes, relative to the others
    still: bool = False  # whether one image is enough to answer


def make_some_move(maker: SceneMaker, *, things: tuple[int, ...], movers: tuple[int, ...]) -> Scene:
    """A scene in which some of the things move along one axis; a number with two bounds is drawn."""
    total, moving = (bounds[0] if len(bounds) == 1 else maker.rng.randint(*bounds) for bounds in (things, movers))
    axis = maker.rng.choice(AXES)
    scene = maker.plain(total, axis)
    moved = [maker.moving(thing, axis) if index < moving else thing for index, thing in enumerate(scene.things)]
    return _with_things(scene, moved, maker.rng)


def make_moving_direction(maker: SceneMaker) -> Scene:
    direction = maker.rng.choice(DIRECTIONS)
    axis: Axis = "horizontal" if direction in ("left", "right") else "vertical"
    scene = maker.plain(maker.rng.randint(1, 3), axis)
    first, *rest = scene.things
    others = [maker.moving(thing, axis) if maker.rng.random() < 0.4 else thing for thing in rest]
    return _with_things(scene, [maker.moving(first, axis, direction), *others], maker.rng)


def ask_moving_direction(scene: Scene, rng: random.Random) -> Question | None:
    thing = _one(rng, (thing for thing in scene.things if thing.moves and _stays(thing) and scene.hidden != thing.look))
    if thing is None:
        return None
    return _question(rng, "moving_direction", f"In which direction does the {thing.look} move?",
                     thing.direction, DIRECTIONS)


def ask_moving_attribute(scene: Scene, rng: random.Random) -> Question | None:
    movers = [thing for thing in scene.things if thing.moves]
    if len(movers) != 1 or len(scene.things) < 3 or movers[0].new_color or scene.wall:
        return None
    return _question(rng, "moving_attribute", "What color is the object that moves?", movers[0].look.color,
                     COLORS, first=_colors(scene))


def ask_moving_count(scene: Scene, rng: random.Random) -> Question | None:
    count = sum(thing.moves for thing in scene.things)
    if count > 3 or len(scene.things) < 3 or scene.wall:
        return None
    return _question(rng, "moving_count", "How many objects move?", count, "0123")


def ask_object_existence(scene: Scene, rng: random.Random) -> Question | None:
    thing = _one(rng, (thing for thing in scene.things if not thing.new_color))
    if thing is None or any(other.new_color for other in scene.things):
        return None
    # the wrong ones are drawn blindly: if they were like the right one, that would give it away
    return _question(rng, "object_existence", "Which of these objects can be seen?", thing.look, _LOOKS,
                     never=[str(other.look) for other in scene.things])


def ask_object_count(scene: Scene, rng: random.Random) -> Question | None:
    if not all(_stays(thing) for thing in scene.things) or scene.wall:
        return None
    return _question(rng, "object_count", "How many objects can be seen?", len(scene.things), "1234")


def make_action_order(maker: SceneMaker) -> Scene:
    scene = maker.plain(3)
    gap = (scene.duration - 1.0) / len(scene.things)
    things = [replace(thing, appears=1.0 + gap * index + maker.rng.uniform(0, gap - 1.25))
              for index, thing in enumerate(scene.things)]
    return _with_things(scene, things, maker.rng)


def ask_action_order(scene: Scene, rng: random.Random) -> Question | None:
    things = sorted(scene.things, key=lambda thing: thing.appears)
    apart = all(second.appears - first.appears > 1.1 for first, second in itertools.pairwise(things))
    if len(things) < 3 or not apart or things[0].appears < 0.5:
        return None
    place, index = rng.choice((("first", 0), ("last", -1)))
    return _question(rng, "action_order", f"Which object appears {place}?", things[index].look, _LOOKS,
                     first=[thing.look for thing in things])


def make_scene_transition(maker: SceneMaker) -> Scene:
    scene = maker.plain(maker.rng.randint(1, 3))
    after = maker.rng.choice(sorted(set(BACKGROUNDS) - {scene.background}))
    return replace(scene, new_background=after, cut=maker.rng.uniform(0.3, 0.7) * scene.duration)


def ask_scene_transition(scene: Scene, rng: random.Random) -> Question | None:
    if scene.new_background is None:
        return None
    pairs = [f"{first} to {second}" for first, second in itertools.permutations(BACKGROUNDS, 2)]
    return _question(rng, "scene_transition", "How does the background change?",
                     f"{scene.background} to {scene.new_background}", pairs,
                     first=[f"{scene.new_background} to {scene.background}"])


def make_needle(maker: SceneMaker) -> Scene:
    scene = maker.plain(3)
    appears = maker.rng.uniform(1.0, scene.duration - 3.0)
    return _change_one(scene, maker.rng, appears=appears, vanishes=appears + 2.0)


def ask_needle(scene: Scene, rng: random.Random) -> Question | None:
    brief = [thing for thing in scene.things if thing.vanishes - thing.appears < 2.5]
    if len(brief) != 1 or len(scene.things) < 3:
        return None
    return _question(rng, "needle", "Which object is there only for a moment?", brief[0].look, _LOOKS,
                     first=[thing.look for thing in scene.things])


def make_state_change(maker: SceneMaker) -> Scene:
    scene = maker.plain(maker.rng.randint(1, 3))
    after = maker.rng.choice(sorted(set(COLORS) - set(_colors(scene))))
    return _change_one(scene, maker.rng, new_color=after, changes=maker.rng.uniform(0.3, 0.7) * scene.duration)


def ask_state_change(scene: Scene, rng: random.Random) -> Question | None:
    thing = _one(rng, (thing for thing in scene.things if thing.new_color))
    if thing is None or thing.new_color is None:
        return None
    return _question(rng, "state_change", f"What color does the {thing.look} turn into?", thing.new_color,
                     COLORS, never=[thing.look.color], first=_colors(scene))


_ALWAYS = "all the time"


def make_action_localization(maker: SceneMaker) -> Scene:
    """One thing is there in one part: the first from the beginning on, the last until the end."""
    scene = maker.plain(maker.rng.randint(2, 3))
    part, third = maker.rng.randrange(3), scene.duration / 3
    appears = part * third + maker.rng.uniform(0.1, 0.3) if part else 0.0
    vanishes = (part + 1) * third - 0.1 if part < 2 else float("inf")
    return _change_one(scene, maker.rng, appears=appears, vanishes=vanishes)


def ask_action_localization(scene: Scene, rng: random.Random) -> Question | None:
    passing = [thing for thing in scene.things if thing.part(scene.duration)]
    if len(passing) != 1:
        return None
    staying = _one(rng, (thing for thing in scene.things if _stays(thing) and not thing.moves))
    # a quarter of the questions are about a thing that stays, so that no option can be ruled out
    asked = staying if staying is not None and rng.random() < 0.25 else passing[0]
    return _question(rng, "action_localization", f"When can the {asked.look} be seen?",
                     asked.part(scene.duration) or _ALWAYS, (*PARTS, _ALWAYS))


def make_object_hidden(maker: SceneMaker) -> Scene:
    scene = maker.plain(3, "horizontal")
    left = maker.rng.uniform(0.36, 0.44)  # what only passes must be seen again before its way ends
    wall = (left, left + 0.3)
    middle = (wall[0] + wall[1]) / 2
    hider, passer, rester = scene.things
    hider = replace(maker.moving(hider, "horizontal"), end=(middle, hider.start[1]))
    passer = maker.moving(passer, "horizontal")
    rester = replace(rester, start=(0.15, rester.start[1]), end=(0.15, rester.start[1]))
    things = [replace(thing, radius=min(thing.radius, 0.11)) for thing in (hider, passer, rester)]
    return _with_things(replace(scene, wall=wall, hidden=hider.look), things, maker.rng)


def ask_object_hidden(scene: Scene, rng: random.Random) -> Question | None:
    if scene.hidden is None:
        return None
    return _question(rng, "object_hidden", "Which object goes behind the wall and stays there?", scene.hidden,
                     _LOOKS, first=[thing.look for thing in scene.things])


def ask_position(scene: Scene, rng: random.Random) -> Question | None:
    plain = (thing for thing in scene.things if _stays(thing) and thing.look != scene.hidden and _corner(thing.end))
    thing = _one(rng, plain)
    if thing is None:
        return None
    moment = " at the end" if any(other.moves for other in scene.things) else ""
    return _question(rng, "position", f"Where is the {thing.look}{moment}?", _corner(thing.end),
                     ("top left", "top right", "bottom left", "bottom right"))


def ask_attribute(scene: Scene, rng: random.Random) -> Question | None:
    shapes = [thing.look.shape for thing in scene.things]
    thing = _one(rng, (thing for thing in scene.things if shapes.count(thing.look.shape) == 1 and not thing.new_color))
    if thing is None:
        return None
    return _question(rng, "attribute", f"What color is the {thing.look.shape}?", thing.look.color, COLORS,
                     first=_colors(scene))


FAMILIES: dict[str, Family] = {
    "moving_direction": Family(make_moving_direction, ask_moving_direction),
    "moving_attribute": Family(partial(make_some_move, things=(3,), movers=(1,)), ask_moving_attribute, 4),
    "moving_count": Family(partial(make_some_move, things=(3,), movers=(0, 3)), ask_moving_count, 4),
    "object_existence": Family(partial(make_some_move, things=(2, 3), movers=(0, 1)), ask_object_existence, 1, True),
    "object_count": Family(partial(make_some_move, things=(1, 4), movers=(0, 1)), ask_object_count, 1, True),
    "action_order": Family(make_action_order, ask_action_order),
    "scene_transition": Family(make_scene_transition, ask_scene_transition),
    "needle": Family(make_needle, ask_needle),
    "state_change": Family(make_state_change, ask_state_change),
    "action_localization": Family(make_action_localization, ask_action_localization, 3),
    "object_hidden": Family(make_object_hidden, ask_object_hidden),
    "position": Family(partial(make_some_move, things=(1, 3), movers=(0, 1)), ask_position, 1, True),
    "attribute": Family(partial(make_some_move, things=(2, 3), movers=(0, 1)), ask_attribute, 1, True),
}


def drawn_family(rng: random.Random) -> str:
    """The name of a family whose scene training is to show next: often one that is hard, rarely one about which scenes
    of the others are asked as well."""
    names = sorted(FAMILIES)
    return rng.choices(names, [FAMILIES[name].weight for name in names])[0]


def questions(scene: Scene, rng: random.Random, families: Sequence[str] = tuple(FAMILIES)) -> list[Question]:
    """Every question that the scene answers, in the order of `families`."""
    asked = (FAMILIES[name].ask(scene, rng) for name in families)
    return [question for question in asked if question is not None]


def _question(rng: random.Random, family: str, text: str, answer: object, choices: Iterable[str], *,
              never: Iterable[str] = (), first: Iterable[object] = ()) -> Question:
    """The question with three different wrong answers: those of `first` as far as they go, the rest drawn."""
    right = {str(answer), *never}
    tempting = [choice for choice in dict.fromkeys(map(str, first)) if choice not in right][:3]
    others = sorted({*choices} - right - {*tempting})
    one, two, three = [*tempting, *rng.sample(others, 3 - len(tempting))]
    return Question(family, text, str(answer), (one, two, three))


def _with_things(scene: Scene, things: Sequence[Thing], rng: random.Random) -> Scene:
    """The scene with these things, shuffled so that their order gives nothing away."""
    return replace(scene, things=tuple(rng.sample(list(things), len(things))))


def _change_one(scene: Scene, rng: random.Random, **fields: Any) -> Scene:
    """The scene with other fields of its first thing, shuffled."""
    first, *rest = scene.things
    return _with_things(scene, [replace(first, **fields), *rest], rng)


def _one(rng: random.Random, things: Iterable[Thing]) -> Thing | None:
    choices = list(things)
    return rng.choice(choices) if choices else None


def _stays(thing: Thing) -> bool:
    return thing.appears == 0.0 and thing.vanishes == float("inf") and thing.new_color is None


def _corner(place: tuple[float, float]) -> str | None:
    x, y = place
    if abs(x - 0.5) < 0.1 or abs(y - 0.5) < 0.1:
        return None
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _colors(scene: Scene) -> list[str]:
    return [thing.look.color for thing in scene.things]
