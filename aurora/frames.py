"""From a decoded frame of PyAV to upright RGB with square pixels."""

from functools import cache
from typing import Any

import numpy as np
from av import VideoFormat
from av.sidedata.sidedata import SideDataContainer

from aurora.images import on_white

_ALMOST_SQUARE = 0.01


def square_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Width and height of a frame, or of a stream's, as square pixels: the side that is too short is stretched, unless
    it is right within 1 %."""
    aspect = stream.sample_aspect_ratio
    if not aspect or abs(aspect - 1) <= _ALMOST_SQUARE:
        return frame.width, frame.height
    return (round(frame.width * aspect), frame.height) if aspect > 1 else (frame.width, round(frame.height / aspect))


def turn(frame: Any) -> tuple[bool, bool, bool]:
    """How a frame becomes upright, to the nearest quarter, as its display matrix says: whether columns become rows, and
    whether rows and columns are then read backwards."""
    # frame.side_data would refer to the frame and be kept by it: a cycle, which holds the picture until the next
    # garbage collection
    attached = SideDataContainer(frame)  # type: ignore[call-arg]
    matrix = attached.get("DISPLAYMATRIX") if len(attached) else None  # looking up what is not there is slow
    # The pixel at (x, y) is shown at (a·x + c·y, b·x + d·y).
    a, b, _, c, d = (1, 0, 0, 0, 1) if matrix is None else np.frombuffer(matrix, np.int32)[:5].tolist()
    return (True, b < 0, c < 0) if abs(b) + abs(c) > abs(a) + abs(d) else (False, d < 0, a < 0)


def has_alpha(frame: Any) -> bool:
    """Whether some of its pixels may be transparent."""
    return _has_alpha(frame.format.name)


@cache
def _has_alpha(name: str) -> bool:
    layout = VideoFormat(name)
    return layout.has_palette or any(component.is_alpha for component in layout.components)


def upright_rgb(frame: Any, width: int, height: int) -> np.ndarray:
    """[H, W, 3] uint8 of a frame, scaled to a width and height, then turned, on white."""
    alpha, (transposed, rows, columns) = has_alpha(frame), turn(frame)
    pixels = frame.to_ndarray(format="rgba" if alpha else "rgb24", width=width, height=height, threads=1)
    pixels = on_white(pixels) if alpha else pixels
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    return np.ascontiguousarray(pixels[::-1 if rows else 1, ::-1 if columns else 1])
