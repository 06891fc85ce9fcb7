"""Scenes in words: captions, and accounts of single frames."""

from __future__ import annotations

from .scenes import Scene, Thing


def place_name(x: float, y: float) -> str:
    """The ninth of the frame that a point lies in."""
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    column = "left" if x < 0.36 else "right" if x > 0.64 else ""
    return f"{row} {column}".strip() or "center"


def image_caption(scene: Scene, time: float) -> str:
    """One sentence about what is where."""
    parts = []
    for thing in reading_order(scene, time):
        color = thing.color_at(time)
        parts.append(f"{_article(color)} {color} {thing.look.shape} at the {_where(thing, scene, time)}")
    if scene.wall is not None:
        parts.append("a wall")
    content = _listed(parts) if parts else "nothing"
    return f"A {scene.background_at(time)} scene with {content}."


def video_caption(scene: Scene) -> str:
    """One sentence per event, in the order of their beginning."""
    parts = [f"The scene is {scene.background}."]
    for thing in sorted(scene.things, key=lambda thing: (thing.appears, thing.place(0, scene.duration)[::-1])):
        parts.append(_story(thing, scene))
    if scene.new_background is not None:
        parts.append(f"The background turns {scene.new_background}.")
    return " ".join(parts)


def glances(scene: Scene, time: float) -> list[str]:
    """The words of each thing that a frame shows, and of what is behind: a connector hands over as much per token."""
    parts = [f" {thing.color_at(time)} {thing.look.shape} {_where(thing, scene, time)}" for thing in scene.seen(time)]
    return [*parts, *([" wall"] if scene.wall else []), f" {scene.background_at(time)}"]


def frame_account(scene: Scene, time: float) -> str:
    """What one frame shows, in as few words as possible, for samples of text alone."""
    parts = [f"{thing.color_at(time)} {thing.look.shape} {_where(thing, scene, time)}"
            for thing in reading_order(scene, time)]
    if scene.wall is not None:
        parts.append("wall")
    return f"{scene.background_at(time)}: {', '.join(parts) or 'nothing'};"


def reading_order(scene: Scene, time: float) -> list[Thing]:
    """The things that can be seen, top to bottom and left to right."""
    return sorted(scene.seen(time), key=lambda thing: thing.place(time, scene.duration)[::-1])


def _story(thing: Thing, scene: Scene) -> str:
    name = f"{_article(thing.look.color).capitalize()} {thing.look}"
    if thing.look == scene.hidden:
        return f"{name} goes behind the wall."
    if thing.moves:
        return f"{name} moves {thing.direction}."
    if thing.new_color:
        return f"{name} turns {thing.new_color}."
    if thing.vanishes < scene.duration:
        return f"{name} comes and goes."
    if thing.appears > 0:
        return f"{name} appears."
    return f"{name} rests at the {place_name(*thing.start)}."


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _where(thing: Thing, scene: Scene, time: float) -> str:
    return place_name(*thing.place(time, scene.duration))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
