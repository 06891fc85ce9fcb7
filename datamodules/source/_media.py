"""Media that annotations name: files below the dataset's folder or bytes, identified by their content."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from aurora.errors import BadSample

_HEAD = 64
_MOST_PICTURES = 4096  # of a folder that stands for a video

Medium = bytes | Path
VIDEOS = ("mp4", "webm", "mkv", "avi", "flv", "wmv", "mpg", "ts", "ogv")
"""Kinds of `content` that are videos; the others are pictures."""


def find(folder: Path, below: str, name: Any) -> Path:
    """The file or folder that annotations name. BadSample when it is missing or does not lie below `folder`."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadSample("path", f"{name!r} is not a path")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "://" in name:
        raise BadSample("path", f"{name!r} does not stay below the dataset's folder")
    path = folder / below / name
    try:
        facts = path.lstat()
        # Links are followed once per folder; only a file that is itself a link is asked again.
        linked = stat.S_ISLNK(facts.st_mode)
        real = os.path.realpath(path) if linked else os.path.join(_real(path.parent), path.name)
        mode = (path.stat() if linked else facts).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadSample("missing", f"no file {os.path.join(below, name)!r}") from None
    except OSError as error:
        raise BadSample("missing", f"{name!r}: {error.strerror}") from error
    if not real.startswith(_real(folder) + os.sep):
        raise BadSample("path", f"{name!r} leads out of the dataset's folder")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise BadSample("path", f"{name!r} is neither a file nor a folder")  # opening a pipe would wait forever
    return path


def size_of(folder: Path, below: str, name: Any) -> int:
    """Bytes of what annotations name; 0 for what is not there."""
    try:
        path = find(folder, below, name)
        return sum(entry.stat().st_size for entry in os.scandir(path)) if path.is_dir() else path.stat().st_size
    except (BadSample, OSError):
        return 0


def media(folder: Path, below: str, given: Sequence[Any]) -> list[Medium]:
    """Media given as paths, as bytes, or as both in a mapping ({"bytes", "path"}, as Hugging Face's datasets do).

    A folder that stands for a video is the pictures in it.
    """
    found: list[Medium] = []
    for one in given:
        if isinstance(one, Mapping):
            one = one.get("bytes") or one.get("path")
        medium = bytes(one) if isinstance(one, (bytes, bytearray)) else find(folder, below, one)
        found += _pictures(medium) if isinstance(medium, Path) and medium.is_dir() else [medium]
    return found


def content(medium: Medium) -> str:
    """What a medium is by its first bytes: "jpg", "mp4", …; also of kinds that no shard holds ("gif", "avi", "ts").

    BadSample for anything else.
    """
    head = medium[:_HEAD] if isinstance(medium, bytes) else _head(medium)
    for found, extension in ((head.startswith(b"\xff\xd8\xff"), "jpg"), (head.startswith(b"\x89PNG\r\n"), "png"),
                             (head[:4] + head[8:12] == b"RIFFWEBP", "webp"), (head.startswith(b"GIF8"), "gif"),
                             (head.startswith((b"II*\0", b"MM\0*")), "tiff"), (head.startswith(b"BM"), "bmp"),
                             (head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"), "mp4"),
                             (head.startswith(b"\x1aE\xdf\xa3"), "webm" if b"webm" in head else "mkv"),
                             (head[:4] + head[8:12] == b"RIFFAVI ", "avi"), (head.startswith(b"FLV"), "flv"),
                             (head.startswith(b"\x30\x26\xb2\x75"), "wmv"), (head.startswith(b"\0\0\x01\xba"), "mpg"),
                             (head[:1] == b"G" and len(head) == _HEAD, "ts"), (head.startswith(b"OggS"), "ogv")):
        if found:
            return extension
    name = "the medium" if isinstance(medium, bytes) else repr(medium.name)
    raise BadSample("content", f"{name} begins with {head[:8]!r}: no known image or video" if head else
                    f"{name} is empty")


def _pictures(path: Path) -> list[Path]:
    """The files of a folder that holds the frames of a video, in the order of the numbers in their names."""
    files = (entry for entry in path.iterdir() if entry.is_file() and not entry.is_symlink())
    found = sorted(files, key=lambda file: (int("".join(filter(str.isdigit, file.name)) or 0), file.name))
    if not 0 < len(found) <= _MOST_PICTURES:
        raise BadSample("missing", f"the folder {path.name!r} holds {len(found)} files, not 1 to {_MOST_PICTURES} "
                                   "frames")
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise BadSample("missing", f"{path.name!r}: {error.strerror}") from error


@lru_cache(maxsize=4096)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)
