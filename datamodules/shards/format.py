"""The sample format: what the members of a WebDataset shard say.

A dataset is a folder of tars. A sample is a run of members that share a key:

    clips/0007.json    the record, always first
    clips/0007.mp4     the media that the record names, if any, in the record's order

A record is a JSON object in UTF-8 with

    "conversations"    [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]: speakers alternate and
                       human begins; a last human turn without an answer is allowed and carries no loss.
    "image"            for one image the extension of its member ("jpg"); for several a list (["0.jpg", "1.jpg"]).
    "video"            the extension of the video's member ("mp4").
    "range"            beside "video" and only there: [start, stop] in seconds after the first frame. What is shown in
                       between is the sample's video; a stop behind the end means the end.

At most one of "image" and "video" is there: kinds are text, image, images (a list of two or more) and video. Other
fields ("id", "family", ...) are kept and not read. `<image>` and `<video>` inside human turns are markers that a
prompt removes. Images are jpg, jpeg, png or webp; videos mp4, webm or mkv.

A key is made of letters, digits and `_ . / -`, has no `..`, is no absolute path, is at most 90 characters long, and
its last part has no dot, because what follows the first dot there is the extension (as in webdataset).
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from aurora.errors import AuroraError
from aurora.interfaces import Turn

KINDS = ("text", "image", "images", "video")
TEXT, IMAGE, IMAGES, VIDEO = range(4)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VIDEO_EXTENSIONS = ("mp4", "webm", "mkv")
MAX_KEY = 90
_JPEG_END = b"\xff\xd9"
ORIENTATION = 0x0112  # of Exif: 1 is upright
_KEY = re.compile(r"[A-Za-z0-9_./-]+")
_EXTENSION = re.compile(r"(?:\d+\.)?[a-z0-9]+")


class BadSample(Exception):
    """A sample that cannot be used: counted under `reason` and skipped, unlike an error of the user's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Limits:
    """What a member may hold at most, so that a small file cannot fill the memory."""

    member_bytes: int = 1 << 30
    pixels: int = 1 << 26
    frames: int = 4_000_000
    seconds: float = 48 * 3600.0


LIMITS = Limits()
# `Limits.pixels` decides, for every picture that this process opens; PIL would print a warning of its own above 89 MP.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class ShardSample:
    """A sample to be written: media by extension ("jpg", "0.jpg", "mp4"), as bytes or as a file to copy."""

    key: str
    record: Mapping[str, Any]
    media: Mapping[str, bytes | Path] = field(default_factory=dict)


class Record(NamedTuple):
    """What a record says: the conversation, the extensions of the media members in order, and the seconds between
    which a video is meant."""

    turns: tuple[Turn, ...]
    media: tuple[str, ...]
    kind: int
    start: float = 0.0
    stop: float | None = None


def check_key(key: str) -> str:
    """The key, or AuroraError."""
    if not _KEY.fullmatch(key) or ".." in key or key.startswith("/") or len(key) > MAX_KEY:
        raise AuroraError(f"key {key!r}: keys have 1 to {MAX_KEY} letters, digits and _ . / - without '..', and are "
                          "no absolute path")
    if "." in key.rpartition("/")[2] or key.endswith("/"):
        raise AuroraError(f"key {key!r}: the last part of a key is not empty and has no dot, because what follows "
                          "the first dot is the extension")
    return key


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension. AuroraError for a name outside the format."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not dot or not _EXTENSION.fullmatch(extension) or extension.rpartition(".")[2] not in DECODERS:
        raise AuroraError(f"member {name!r} is not one of {', '.join(DECODERS)}; no other member is ever decoded")
    return check_key(folder + slash + stem), extension


def parse_record(raw: bytes) -> Record:
    """The record of a json member. BadSample when it does not follow the format."""
    try:
        record = json.loads(raw)
        if not isinstance(record, dict):
            raise ValueError("not an object")
        media, kind = _media(record)
        return Record(_turns(record.get("conversations")), media, kind, *_range(record))
    except (ValueError, RecursionError) as error:
        raise BadSample("json", str(error)) from error


def _media(record: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    image, video = record.get("image"), record.get("video")
    if image is not None and video is not None:
        raise ValueError("both image and video")
    if video is not None:
        return (_named(video, VIDEO_EXTENSIONS, "video"),), VIDEO
    if image is None:
        return (), TEXT
    names = image if isinstance(image, list) else [image]
    extensions = tuple(_named(name, IMAGE_EXTENSIONS, "image") for name in names)
    if not extensions or len(set(extensions)) != len(extensions):
        raise ValueError(f"image {image!r} names no member, or one twice")
    return extensions, IMAGE if len(extensions) == 1 else IMAGES


def _range(record: Mapping[str, Any]) -> tuple[float, float | None]:
    given = record.get("range")
    if given is None:
        return 0.0, None
    if record.get("video") is None:
        raise ValueError("a range without a video")
    if not isinstance(given, list) or len(given) != 2 or {type(second) for second in given} - {int, float}:
        raise ValueError(f"range {given!r} is not [start, stop] in seconds")
    start, stop = given
    if not 0 <= start < stop < math.inf:
        raise ValueError(f"range {given!r} does not begin at 0 or later and end after that")
    return float(start), float(stop)


def _named(value: object, known: tuple[str, ...], field_name: str) -> str:
    if not isinstance(value, str) or not _EXTENSION.fullmatch(value) or value.rpartition(".")[2] not in known:
        raise ValueError(f"{field_name} {value!r} is not the extension of a member ({', '.join(known)})")
    return value


def _turns(conversation: object) -> tuple[Turn, ...]:
    if not isinstance(conversation, list) or not conversation:
        raise ValueError("no conversations")
    values = []
    for number, entry in enumerate(conversation):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(entry, dict) or entry.get("from") != speaker or not isinstance(entry.get("value"), str):
            raise ValueError(f"turn {number} is not a text from {speaker}")
        values.append(entry["value"])
    answers = [*values[1::2], None]
    return tuple(Turn(asked, answered) for asked, answered in zip(values[0::2], answers, strict=False))


def decode_image(raw: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """[H, W, 3] uint8, upright. BadSample for anything that is no whole jpeg, png or webp within the limits."""
    try:
        with open_picture(raw, limits=limits) as image:
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


def image_shape(raw: bytes, limits: Limits = LIMITS) -> tuple[int, int]:
    """Height and width once upright, told without decoding a JPEG. BadSample like `decode_image`, for a JPEG only where
    its header is broken or its end is missing."""
    try:
        # What turns a picture stands before its scan.
        if raw.startswith(b"\xff\xd8") and raw.endswith(_JPEG_END) and b"Exif\0" not in raw[:raw.find(b"\xff\xda")]:
            with suppress(ValueError):  # else PIL, which takes ten times as long, says what is wrong
                height, width, *_ = simplejpeg.decode_jpeg_header(raw)
                _check_pixels(height, width, limits)
                return height, width
        with open_picture(raw, limits=limits) as image:
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


def open_picture(
    raw: bytes, *, formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP"), limits: Limits = LIMITS
) -> ImageFile:
    """A picture of one of PIL's `formats`, its pixels not decoded yet. BadSample where they are more than the limit,
    an error of PIL's for anything else."""
    try:
        image = Image.open(io.BytesIO(raw), formats=formats)
    except UnidentifiedImageError:
        # PIL names the buffer by its address
        raise ValueError(f"it is no {', '.join(formats[:-1]).lower()} or {formats[-1].lower()}") from None
    _check_pixels(image.height, image.width, limits)
    return image


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.pixels:
        raise BadSample("limits", f"{width}×{height} pixels are more than {limits.pixels}")


def _array(raw: bytes) -> np.ndarray:
    return np.load(io.BytesIO(raw), allow_pickle=False)  # type: ignore[no-any-return]


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "json": parse_record,
    "txt": lambda raw: raw.decode("utf-8"),
    "npy": _array,
    **dict.fromkeys(IMAGE_EXTENSIONS, decode_image),
    **dict.fromkeys(VIDEO_EXTENSIONS, bytes),  # the reader takes the bytes of a file
}
"""Every extension that a member may have, and how it is decoded. Nothing here runs what it reads."""
