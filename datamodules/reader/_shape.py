"""The shape in which a reader will hand out the frames of a video."""

from __future__ import annotations

from typing import NamedTuple

from aurora.errors import AuroraError

from ._file import label, open_video


class Shape(NamedTuple):
    """A frame as it is stored, by how many degrees it is turned to stand upright, and whether it is two fields."""

    height: int
    width: int
    rotation: int
    interlaced: bool


def stored_shape(source: str | bytes) -> Shape:
    """The shape of the first frame. AuroraError when it cannot be decoded."""
    with open_video(source) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise AuroraError(f"{label(source)} holds no frame that can be decoded")
        return Shape(frame.height, frame.width, frame.rotation, frame.interlaced_frame)


def video_shape(source: str | bytes) -> tuple[int, int]:
    """Height and width of the first frame, upright. AuroraError when it cannot be decoded."""
    height, width, rotation, _ = stored_shape(source)
    return (width, height) if rotation % 180 else (height, width)
