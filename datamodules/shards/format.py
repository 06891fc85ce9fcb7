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
fields ("id", "family", ...) are kept and not read. `<image>` and `<video>` inside human turns are markers: there is
none, or one for each medium (`aurora/markers.py` says which tags are words). Images are jpg, jpeg, png or webp; videos
mp4, webm or mkv.

What is written has keys of letters, digits and `_ . / -`, at most 90 of them, without `..`, that are not absolute paths
and whose last part has no dot, because what follows the first dot there is the extension (as in webdataset). Tars of
others are read as webdataset reads them: capitals in an extension do not matter, members without a key are skipped.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.interfaces import Turn
from aurora.markers import place_media
from aurora.records import parse

KINDS = ("text", "image", "images", "video")
TEXT, IMAGE, IMAGES, VIDEO = range(4)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VIDEO_EXTENSIONS = ("mp4", "webm", "mkv")
EXTENSIONS = ("json", "txt", "npy", *IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)
"""Every extension that a member may have. Nothing that reads them runs what it reads."""
MAX_KEY = 90
MEMBER_BYTES = 1 << 30
"""What a member may hold at most, so that a small file cannot fill the memory."""
_KEY = re.compile(r"[A-Za-z0-9_./-]+")
_EXTENSION = re.compile(r"(?:\d+\.)?[a-z0-9]+")


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


def split_name(name: str) -> tuple[str, str] | None:
    """A member's key and extension in small letters; None for what webdataset skips: names that begin with a dot or
    have none, such as `._a.json` of a Mac, and `__meta__`."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot or re.fullmatch(r"__.*__", last):
        return None
    return folder + slash + stem, extension.lower()


def check_foreign_key(key: str) -> None:
    """BadSample for the key of a tar of others that leads elsewhere or is not text."""
    if not key.isprintable() or key.startswith("/") or ".." in key or len(key.encode()) > MAX_KEY:
        raise BadSample("key", f"{key!r} leads elsewhere, or has more than {MAX_KEY} bytes or some that are not text")


def check_members(record: Record, extensions: Iterable[str]) -> None:
    """BadSample when a sample has media that its record does not name."""
    media = IMAGE_EXTENSIONS + VIDEO_EXTENSIONS
    unnamed = sorted(one for one in extensions if one not in record.media and is_read(one, media))
    if unnamed:
        raise BadSample("media", f"the record does not name {', '.join(unnamed)}, which the sample has")


def is_read(extension: str, known: Sequence[str] = EXTENSIONS) -> bool:
    """Whether members with an extension are ever read."""
    return bool(_EXTENSION.fullmatch(extension)) and extension.rpartition(".")[2] in known


def parse_record(raw: bytes) -> Record:
    """The record of a json member. BadSample when it does not follow the format."""
    with bad_sample("json", (ValueError,)):
        record = parse(raw)
        media, kind = _media(record)
        turns = place_media(_turns(record.get("conversations")), "video" if kind == VIDEO else "image", len(media))
        made = Record(turns, media, kind, *_range(record))
    return made


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
    extension = value.lower() if isinstance(value, str) else ""
    if not is_read(extension, known):
        raise ValueError(f"{field_name} {value!r} is not the extension of a member ({', '.join(known)})")
    return extension


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
