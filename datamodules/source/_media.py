"""Media that annotations name: files below the dataset's folder, or bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from aurora.errors import BadSample

_MOST_PICTURES = 4096  # of a folder that stands for a video

Medium = bytes | Path


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


def _pictures(path: Path) -> list[Path]:
    """The files of a folder that holds the frames of a video, in the order of the numbers in their names."""
    files = (entry for entry in path.iterdir() if entry.is_file() and not entry.is_symlink())
    found = sorted(files, key=lambda file: (int("".join(filter(str.isdigit, file.name)) or 0), file.name))
    if not 0 < len(found) <= _MOST_PICTURES:
        raise BadSample("missing", f"the folder {path.name!r} holds {len(found)} files, not 1 to {_MOST_PICTURES} "
                                   "frames")
    return found


@lru_cache(maxsize=4096)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)
