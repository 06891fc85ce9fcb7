"""What happens in a video of Blocks world, as data: objects, their motion, appearance, change and hiding.

A scene is a value; `render.py` draws it, `families.py` asks about it, `conversations.py` describes it. Lengths and
places are fractions of the frame's side, times are seconds.
"""

import hashlib
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "yellow": (250, 235, 50),
    "green": (40, 175, 60),
    "blue": (50, 90, 240),
    "purple": (160, 50, 200),
    "white": (250, 250, 250),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 14),
    "gray": (120, 120, 124),
    "navy": (16, 24, 84),
    "brown": (88, 54, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
Direction = Literal["left", "right", "up", "down"]
Axis = Literal["horizontal", "vertical"]
AXES: tuple[Axis, ...] = ("horizontal", "vertical")
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "up", "down")
PARTS = ("in the first part", "in the middle", "in the last part")
Split = Literal["train", "validation", "test"]
HELDOUT_SHARE = 10
"""One combination in so many is for validation, and as many are for the test."""
BANDS = (0.14, 0.38, 0.62, 0.86)
"""Objects of a scene run in bands of their own, so that they hide each other only where the scene says so."""


class Look(NamedTuple):
    """What an object looks like; unique in its scene."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Thing:
    """One object and what becomes of it."""

    look: Look
    start: tuple[float, float]  # x, y of the centre when it appears
    end: tuple[float, float]  # and when the video ends; the same for a thing that rests
    radius: float
    appears: float = 0.0
    vanishes: float = float("inf")
    new_color: str | None = None
    changes: float = float("inf")  # when it takes its new colour

    @property
    def moves(self) -> bool:
        return self.start != self.end

    @property
    def direction(self) -> Direction:
        """Where it moves; only for things that do."""
        across, down = self.end[0] - self.start[0], self.end[1] - self.start[1]
        if abs(across) > abs(down):
            return "right" if across > 0 else "left"
        return "down" if down > 0 else "up"

    def part(self, duration: float) -> str | None:
        """The third of the video that a thing fills with its presence; None when it is there longer or shorter."""
        third = duration / 3
        number = int(self.appears // third)
        late, early = self.appears - number * third, (number + 1) * third - min(self.vanishes, duration)
        return PARTS[number] if late < 0.35 and -0.01 < early < 0.15 else None

    def color_at(self, time: float) -> str:
        return self.new_color if self.new_color is not None and time >= self.changes else self.look.color

    def visible(self, time: float) -> bool:
        return self.appears <= time < self.vanishes

    def place(self, time: float, duration: float) -> tuple[float, float]:
        """x, y of the centre: a straight way at an even pace, from its appearance to the end of the video."""
        span = min(self.vanishes, duration) - self.appears
        share = min(1.0, max(0.0, (time - self.appears) / span))
        return (self.start[0] + share * (self.end[0] - self.start[0]),
                self.start[1] + share * (self.end[1] - self.start[1]))


@dataclass(frozen=True)
class Scene:
    """One video: its things, its background and the wall that may hide something."""

    duration: float
    background: str
    things: tuple[Thing, ...]
    new_background: str | None = None
    cut: float = float("inf")  # when the background changes
    wall: tuple[float, float] | None = None  # from, to: the stretch of x that the wall covers
    hidden: Look | None = None  # what rests behind the wall when the video ends

    @property
    def split(self) -> Split:
        """Backgrounds, looks and new colours decide, so that no picture, caption or question of a combination that is
        held out is part of any training, though each of its words and colours is."""
        shown = sorted(f"{thing.look} {thing.new_color or ''}" for thing in self.things)
        combination = "|".join([self.background, self.new_background or "", *shown])
        drawn = int.from_bytes(hashlib.sha256(combination.encode()).digest()[:4], "big") % HELDOUT_SHARE
        return "test" if drawn == 0 else "validation" if drawn == 1 else "train"

    def background_at(self, time: float) -> str:
        return self.new_background if self.new_background is not None and time >= self.cut else self.background

    def seen(self, time: float) -> list[Thing]:
        """The things of which the wall leaves something to be seen, in the order in which they are drawn."""
        left, right = self.wall or (0.0, 0.0)
        placed = [(thing.place(time, self.duration)[0], thing) for thing in self.things if thing.visible(time)]
        return [thing for x, thing in placed if x - thing.radius < left or x + thing.radius > right]


def of_split(split: Split, make: Callable[[], Scene]) -> Scene:
    """The first scene of a split that `make` draws."""
    while True:
        scene = make()
        if scene.split == split:
            return scene


def _at(axis: Axis, along: float, band: float) -> tuple[float, float]:
    return (along, band) if axis == "horizontal" else (band, along)


@dataclass
class SceneMaker:
    """Draws scenes from a seeded source; every method gives a scene in which its event can be seen."""

    rng: random.Random

    def plain(self, things: int, axis: Axis | None = None) -> Scene:
        """Things at rest that are there from the beginning to the end."""
        along = axis if axis is not None else self.rng.choice(AXES)
        bands = self.rng.sample(BANDS, things)
        duration, background = float(self.rng.randint(7, 9)), self.rng.choice(sorted(BACKGROUNDS))
        made: list[Thing] = []
        for band in bands:
            made.append(self.resting(along, band, [thing.look.color for thing in made]))
        return Scene(duration, background, tuple(made))

    def moving(self, thing: Thing, axis: Axis, direction: Direction | None = None) -> Thing:
        """The thing crossing the frame along its band."""
        band = thing.start[1] if axis == "horizontal" else thing.start[0]
        low, high = self.rng.uniform(0.12, 0.22), self.rng.uniform(0.78, 0.88)
        forward = direction in ("right", "down") if direction else self.rng.random() < 0.5
        begin, end = (low, high) if forward else (high, low)
        return replace(thing, start=_at(axis, begin, band), end=_at(axis, end, band))

    def resting(self, axis: Axis, band: float, taken: Collection[str] = ()) -> Thing:
        """A thing at rest somewhere in a band, in a color that is not taken."""
        place = _at(axis, self.rng.uniform(0.14, 0.86), band)
        look = Look(self.rng.choice(sorted(COLORS.keys() - {*taken})), self.rng.choice(SHAPES))
        return Thing(look, start=place, end=place, radius=self.rng.uniform(0.095, 0.12))
