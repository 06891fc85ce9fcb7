"""Draws scenes and encodes them as H.264."""

import io
import math

import av
import numpy as np
from PIL import Image, ImageDraw

from .scenes import BACKGROUNDS, COLORS, Scene, Thing

SIDE = 96  # pixels
FPS = 4
_SMOOTH = 2  # drawn this many times larger, then reduced: soft edges


def draw(scene: Scene, time: float) -> np.ndarray:
    """[SIDE, SIDE, 3] uint8: the scene at a moment in seconds."""
    big = SIDE * _SMOOTH
    image = Image.new("RGB", (big, big), BACKGROUNDS[scene.background_at(time)])
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        if thing.visible(time):
            _draw_thing(pen, thing, scene, time, big)
    if scene.wall is not None:
        left, right = (round(edge * big) for edge in scene.wall)
        pen.rectangle((left, 0, right, big), fill=(70, 70, 74), outline=(200, 200, 200), width=_SMOOTH)
    return np.asarray(image.reduce(_SMOOTH))


def encode(scene: Scene) -> bytes:
    """An mp4 file with the scene in H.264; the same scene gives the same bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # one thread and bit-exact muxing: no version string or schedule in the bytes
        container.flags |= av.container.Flags.bitexact.value
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        # without B-frames and lookahead: with them the bytes of about one video in two thousand differ between runs
        stream.options = {"crf": "17", "preset": "veryfast", "g": str(8 * FPS), "bf": "0", "tune": "zerolatency"}
        for number in range(round(scene.duration * FPS)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(scene, number / FPS), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def picture(scene: Scene, time: float) -> bytes:
    """A PNG file of the scene at a moment."""
    buffer = io.BytesIO()
    Image.fromarray(draw(scene, time)).save(buffer, "PNG")
    return buffer.getvalue()


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, scene: Scene, time: float, big: int) -> None:
    x, y = (place * big for place in thing.place(time, scene.duration))
    radius = thing.radius * big
    color = COLORS[thing.color_at(time)]
    shape = thing.look.shape
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == "square":
        half = radius * 0.88
        pen.rectangle((x - half, y - half, x + half, y + half), fill=color)
    elif shape == "cross":
        thick = radius * 0.34
        pen.rectangle((x - radius, y - thick, x + radius, y + thick), fill=color)
        pen.rectangle((x - thick, y - radius, x + thick, y + radius), fill=color)
    else:
        corners, inner = (3, None) if shape == "triangle" else (5, 0.45)
        pen.polygon(_polygon(x, y, radius * 1.1, corners, inner), fill=color)


def _polygon(x: float, y: float, radius: float, corners: int, inner: float | None) -> list[tuple[float, float]]:
    """The corners of a regular polygon, or of a star when `inner` is the share of its inner radius."""
    radii = [radius] if inner is None else [radius, radius * inner]
    count = corners * len(radii)
    angles = (2 * math.pi * index / count - math.pi / 2 for index in range(count))
    return [(x + radii[index % len(radii)] * math.cos(angle), y + radii[index % len(radii)] * math.sin(angle))
            for index, angle in enumerate(angles)]
