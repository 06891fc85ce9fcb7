"""The frames of animated pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aurora.errors import AuroraError, BadSample
from aurora.images import PICTURE_ERRORS, READABLE, frame_count, open_picture, pixels_of

from ._deadline import Deadline, label

_QUICK, _USUAL = 20, 100  # milliseconds


def animation(source: str | bytes, deadline: Deadline) -> Iterator[tuple[float, np.ndarray]]:
    """(milliseconds it lasts, [H, W, 3] uint8) of every frame of an animated picture, upright and on white, once.

    A frame that lasts less than 20 ms is given 100, as browsers do. AuroraError for a broken one.
    """
    try:
        end = source[-64:] if isinstance(source, bytes) else Path(source).read_bytes()[-64:]
        with open_picture(source, formats=READABLE, animated=True) as image:
            if image.format == "GIF" and b"\0;" not in end:
                raise EOFError("it is truncated: a GIF ends with a marker, which is not there")
            # A PNG may begin with a picture for those that show no animation.
            for number in range(int(getattr(image, "default_image", False)), frame_count(image)):
                deadline.check()
                image.seek(number)
                pixels = pixels_of(image.copy())
                lasts = image.info.get("duration", 0)
                yield lasts if lasts >= _QUICK else _USUAL, pixels
    except AuroraError:
        raise
    except (*PICTURE_ERRORS, BadSample) as error:
        raise AuroraError(f"{label(source)} cannot be read as a video: {getattr(error, 'detail', error)}") from error
