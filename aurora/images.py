"""From the bytes of an image to the pixels that an encoder takes."""

import base64
import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from aurora.errors import AuroraError, BadSample

# torch takes seconds to import, and a process that only decodes has no use for it
if TYPE_CHECKING:
    from torch import Tensor

Resize = Literal["crop", "keep_aspect", "pad", "squash"]
LONGEST = 4
"""How many times longer than its short side `keep_aspect` leaves a picture: a strip of 10 × 10,000 pixels would
otherwise become half a million patches."""
GREY = 127
MAX_PIXELS = 1 << 26
"""What an image may have at most, so that a small file cannot fill the memory."""
ORIENTATION = 0x0112  # of Exif: 1 is upright
READABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats of PIL that are read from files."""
IN_SHARDS = READABLE[:3]
PICTURE_ERRORS = (OSError, ValueError, SyntaxError, TypeError, EOFError)
"""What PIL raises for a picture that is broken."""
_JPEG_END = b"\xff\xd9"

# `MAX_PIXELS` decides, for every picture that this process opens; PIL would print a warning of its own above 89 MP.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class ImagePreparation:
    """How an image of any shape becomes pixels whose sides are multiples of the patch size.

    `crop`: the centre square, its sides to `size`. `keep_aspect`: short side to `size`, the long side rounded
    to patches and at most `LONGEST` times the short one. `pad`: long side to `size`, the rest filled with mid-grey.
    `squash`: both sides to `size`. A `size` between two multiples of the patch size is rounded down.
    """

    size: int
    patch_size: int
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize):
            raise AuroraError(f"resize {self.resize!r} is unknown; known: {', '.join(get_args(Resize))}")
        if not 1 <= self.patch_size <= self.size:
            raise AuroraError(f"image size {self.size} holds no whole patch of {self.patch_size} pixels")

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after preparation."""
        side = self.size // self.patch_size * self.patch_size
        if self.resize != "keep_aspect":
            return side, side
        aspect = min(max(height, width) / min(height, width), LONGEST)
        long = round(side * aspect / self.patch_size) * self.patch_size
        return (long, side) if height > width else (side, long)

    def patches(self, height: int, width: int) -> int:
        """Patches of an image of this height and width in pixels, before preparation."""
        rows, columns = self.shape(height, width)
        return (rows // self.patch_size) * (columns // self.patch_size)

    def __call__(self, image: np.ndarray) -> "Tensor":
        """[H, W, 3] uint8 → [3, h, w] uint8."""
        height, width = image.shape[:2]
        target = self.shape(height, width)
        if self.resize == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[top:top + side, left:left + side]
        elif self.resize == "pad":
            scale = min(target[0] / height, target[1] / width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
            top, left = (target[0] - height) // 2, (target[1] - width) // 2
            picture = resized(image, height, width)
            canvas = picture.new_full((3, *target), GREY)
            canvas[:, top:top + height, left:left + width] = picture
            return canvas
        return resized(image, *target).contiguous()


def resized(image: np.ndarray, height: int, width: int) -> "Tensor":
    """[H, W, 3] uint8 → [3, height, width] uint8 with the strides of a picture: bicubic, and over the whole of what a
    smaller pixel covers. As PIL does it but for rounding and that widths always come first, and four times as fast."""
    import torch
    import torch.nn.functional as F

    if not (image.flags.c_contiguous and image.flags.writeable):
        image = image.copy()
    whole = torch.from_numpy(image.transpose(2, 0, 1)[None])
    if whole.shape[2:] == (height, width):
        return whole[0]
    return F.interpolate(whole, (height, width), mode="bicubic", antialias=True)[0]


def read_image(path: str | Path) -> np.ndarray:
    """[H, W, 3] uint8, upright. AuroraError unless the file is a whole image of one of the READABLE formats."""
    try:
        return decode_image(Path(path).read_bytes(), formats=READABLE)
    except BadSample as error:
        raise AuroraError(f"{path} is not a readable image: {error.detail}") from error


def decode_image(raw: bytes, *, formats: tuple[str, ...] = IN_SHARDS) -> np.ndarray:
    """[H, W, 3] uint8, upright. BadSample unless it is a whole image, in one of PIL's `formats` and not animated, of
    at most MAX_PIXELS."""
    try:
        with open_picture(raw, formats=formats) as image:
            return pixels_of(image, raw)
    except PICTURE_ERRORS as error:
        raise BadSample("image", str(error)) from error


def pixels_of(image: Image.Image, raw: bytes = b"", short_side: int = 0) -> np.ndarray:
    """[H, W, 3] uint8, upright, of an opened image and its bytes; a JPEG may come at an eighth to a half of its size,
    where that leaves the short side so many pixels. The errors of PIL.

    What is transparent lets white through. 16 bits a channel become 8; floats must lie between 0 and 1.
    """
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
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey(image)
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # PIL keeps the upper half of 16 bits, but not of this colour
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    # A conversion to what it already is would copy it.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey(image: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8 of grey levels in more than 8 bits. ValueError where nothing says which of them is white."""
    tags = getattr(image, "tag_v2", {})  # of TIFF
    values = np.asarray(image)
    top = (1 << tags.get(258, (16,))[0]) - 1  # bits per sample
    if image.mode == "F":
        top = 1
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"its pixels are floats from {values.min():g} to {values.max():g}; only from 0 to 1 is it "
                             "known which are black and white")
    elif image.mode == "I":
        raise ValueError("its pixels are signed or 32-bit integers; it is not known which of them is white")
    levels = values / top
    if tags.get(262) == 0:  # photometric interpretation: 0 is white
        levels = 1 - levels
    if image.info.get("transparency") is not None:
        levels = np.where(values == image.info["transparency"], 1, levels)
    return np.repeat((levels * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 4] uint8, the last channel how opaque they are, → [H, W, 3] uint8 before a white ground."""
    opaque = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * opaque + (255 - opaque) * 255 + 127) // 255).astype(np.uint8)


def image_shape(raw: bytes) -> tuple[int, int]:
    """Height and width once upright, without decoding a JPEG. BadSample like `decode_image`, for a JPEG only where
    its header is broken or its end is missing."""
    try:
        # What turns a picture stands before its scan.
        head = raw[:raw.find(b"\xff\xda")] if raw.startswith(b"\xff\xd8") and raw.endswith(_JPEG_END) else b""
        if head and b"Exif\0" not in head and b"tiff:Orientation" not in head:
            with suppress(ValueError):  # else PIL, which takes ten times as long, says what is wrong
                height, width, *_ = simplejpeg.decode_jpeg_header(raw)
                _check_pixels(height, width)
                return height, width
        with open_picture(raw) as image:
            if image.format == "JPEG" and image.fp and raw.rfind(_JPEG_END, image.fp.tell()) < 0:
                raise ValueError("it is cut off: a JPEG ends with a marker, which is not there")
            return upright_shape(image)
    except PICTURE_ERRORS as error:
        raise BadSample("image", str(error)) from error


def upright_shape(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image once upright."""
    # Exif orientations 5 to 8 lay the picture on its side; PIL gives a TIFF the size that it has once upright.
    sideways = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= 5
    return (image.width, image.height) if sideways else (image.height, image.width)


def frame_count(image: Image.Image) -> int:
    """Frames of an opened animation, or pages; 1 of a still picture, also where a camera stored a second one in it."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def open_picture(source: bytes | str | Path, *, formats: tuple[str, ...] = IN_SHARDS, animated: bool = False
                 ) -> ImageFile:
    """A picture of one of PIL's `formats`, its pixels not decoded yet. BadSample where they are more than the limit,
    an error of PIL's for anything else, and for several frames or pages unless they may be `animated`."""
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except UnidentifiedImageError:
        # PIL names the buffer by its address
        raise ValueError(f"it is not a {', '.join(formats[:-1]).lower()} or {formats[-1].lower()}") from None
    _check_pixels(image.height, image.width)
    if not animated and frame_count(image) > 1:
        raise ValueError(f"it is not a still picture: the {image.format} has {frame_count(image)} "
                         f"{'pages' if image.format == 'TIFF' else 'frames'}")
    return image


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BadSample("limits", f"{width}×{height} pixels are more than {MAX_PIXELS}")


def data_url(image: np.ndarray, *, lossy: bool = False, longest: int | None = None) -> str:
    """A PNG, or a JPEG where it may be lossy, of [H, W, 3] uint8 inside a page; the long side is at most `longest`."""
    picture, buffer = Image.fromarray(np.ascontiguousarray(image)), io.BytesIO()
    if longest is not None:
        picture.thumbnail((longest, longest))
    kind = "jpeg" if lossy else "png"
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
