"""Pictures of shards: their shape without decoding, and their pixels as PIL gives them."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from ..reader._file import MAX_PIXELS
from .format import BadSample

ORIENTATION = 0x0112  # of Exif: 1 is upright
_JPEG_END = b"\xff\xd9"
# MAX_PIXELS decides, for every picture that this process opens; PIL would print a warning of its own above 89 MP.
Image.MAX_IMAGE_PIXELS = None


def decode_image(raw: bytes) -> np.ndarray:
    """[H, W, 3] uint8, upright. BadSample for anything that is not a whole jpeg, png or webp within the limits."""
    try:
        with open_picture(raw) as image:
            return pixels_of(image, raw)
    except (OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
        raise BadSample("image", str(error)) from error


def pixels_of(image: Image.Image, raw: bytes, short_side: int = 0) -> np.ndarray:
    """[H, W, 3] uint8, upright, of an opened image; a JPEG may come at an eighth to a half of its size, where
    that leaves the short side so many pixels. The errors of PIL."""
    upright = image.getexif().get(ORIENTATION, 1) == 1
    if image.format == "JPEG" and image.mode == "RGB" and upright:
        # The same library as PIL's, without its copies. What it finds wrong is left to PIL to judge.
        with suppress(ValueError):
            pixels: np.ndarray = simplejpeg.decode_jpeg(raw, min_height=short_side, min_width=short_side, min_factor=2)
            return pixels
    if short_side:
        image.draft("RGB", (short_side, short_side))
    if not upright:
        ImageOps.exif_transpose(image, in_place=True)
    coloured = image.convert("RGBA") if "transparency" in image.info else image
    # A conversion to what it already is would copy it.
    return np.array(coloured if coloured.mode == "RGB" else coloured.convert("RGB"))


def image_shape(raw: bytes) -> tuple[int, int]:
    """Height and width once upright, told without decoding a JPEG. BadSample like `decode_image`, for a JPEG only where
    its header is broken or its end is missing."""
    try:
        # What turns a picture stands before its scan.
        if raw.startswith(b"\xff\xd8") and raw.endswith(_JPEG_END) and b"Exif\0" not in raw[:raw.find(b"\xff\xda")]:
            with suppress(ValueError):  # else PIL, which takes ten times as long, says what is wrong
                height, width, *_ = simplejpeg.decode_jpeg_header(raw)
                _check_pixels(height, width)
                return height, width
        with open_picture(raw) as image:
            if image.format == "JPEG" and image.fp and raw.rfind(_JPEG_END, image.fp.tell()) < 0:
                raise ValueError("it is cut off: a JPEG ends with a marker, which is not there")
            return upright_shape(image)
    except (OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
        raise BadSample("image", str(error)) from error


def upright_shape(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image once upright."""
    # Exif orientations 5 to 8 lay the picture on its side.
    sideways = image.getexif().get(ORIENTATION, 1) >= 5
    return (image.width, image.height) if sideways else (image.height, image.width)


def open_picture(raw: bytes, *, formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")) -> ImageFile:
    """A picture of one of PIL's `formats`, its pixels not decoded yet. BadSample where they are more than the limit,
    an error of PIL's for anything else."""
    try:
        image = Image.open(io.BytesIO(raw), formats=formats)
    except UnidentifiedImageError:
        # PIL names the buffer by its address
        raise ValueError(f"not a {', '.join(formats[:-1]).lower()} or {formats[-1].lower()}") from None
    _check_pixels(image.height, image.width)
    return image


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BadSample("limits", f"{width}×{height} pixels are more than {MAX_PIXELS}")
