"""Results that are there as a whole or not at all, and room for them on the disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora.errors import AuroraError

_OF_A_MODEL = re.compile(r".*\.(safetensors|json|yaml|txt|md|model|jinja)|tokenizer|LICENSE|NOTICE|\.gitattributes")


@contextmanager
def replacing(target: Path, *, folder: bool) -> Iterator[Path]:
    """A place beside `target` to write to, which takes its place at the end and is removed after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("tmp", "old"))
    for leftover in (partial, old):
        _remove(leftover)
    if folder:
        partial.mkdir()
    try:
        yield partial
        _to_disk(partial)
        # a folder cannot be replaced while it holds something
        if target.is_dir():
            os.replace(target, old)
        os.replace(partial, target)
        _to_disk(target.parent, inside=False)
    except BaseException:
        _remove(partial)
        raise
    _remove(old)


def require_free(target: Path, *, folder: bool, force: bool) -> None:
    """AuroraError when there is something at `target` that may not be replaced."""
    if target.is_dir() and not folder:
        raise AuroraError(f"{target} is a folder; give the name of a file")
    if folder and target.exists() and not target.is_dir():
        raise AuroraError(f"{target} is a file; give the name of a folder, or of a .safetensors or .pth file")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise AuroraError(f"{target} is there already; --force replaces it")
    others = sorted(entry.name for entry in target.iterdir() if not _OF_A_MODEL.fullmatch(entry.name)) if folder else []
    if others:
        raise AuroraError(f"{target} is not replaced: it holds {others[0]!r}, which is no part of a model; "
                          "give a folder of its own")


def require_room(target: Path, wanted: int) -> None:
    """AuroraError when the disk has no room for so many bytes."""
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise AuroraError(f"{target} needs {wanted / 2**30:.2f} GiB; {free / 2**30:.2f} GiB are free on its disk")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path, *, inside: bool = True) -> None:
    for each in [*(path.rglob("*") if inside and path.is_dir() else ()), path]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
