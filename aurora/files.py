"""Writing files and folders atomically, so that they are there as a whole or not at all, room for them, and JSON."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_OF_A_MODEL = re.compile(r".*\.(safetensors|json|yaml|txt|md|model|jinja)|tokenizer|LICENSE|NOTICE|\.gitattributes")


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """AuroraError that names what is being written when the disk is full, which the system's own error does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise AuroraError(f"{path}: no room left on the disk ({error.strerror}); make room and run again") from error


@contextlib.contextmanager
def claimed(file: Path, what: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether `what` is ours until the end of the block, or of this process: no other process, on any machine that sees
    the file, has claimed it there; with `wait` once none has. A process has one claim of a file at a time. Where the
    file system has no locks everything is ours."""
    import fcntl  # not on Windows

    file.parent.mkdir(parents=True, exist_ok=True)
    # a byte far behind the end of the file, one for everything that can be claimed
    place = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7], "big")
    with file.open("ab") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
            free = True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, *_NO_LOCKS):
                raise
            free = error.errno in _NO_LOCKS
        yield free


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically. OSError names it, AuroraError when the disk is full."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with room_for(path):
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def replacing(target: Path, *, folder: bool) -> Iterator[Path]:
    """A place beside `target` to write a file or folder to: it replaces `target` at the end, once it is on the disk,
    and is removed after an error. Readers see the old or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("tmp", "old"))
    for leftover in (partial, old):
        remove(leftover)
    if folder:
        partial.mkdir()
    try:
        yield partial
        for path in [*(partial.rglob("*") if folder else ()), partial]:
            sync(path)
        # a folder cannot be replaced while it holds something
        if target.is_dir():
            os.replace(target, old)
        os.replace(partial, target)
        sync(target.parent)
    except BaseException:
        remove(partial)
        raise
    remove(old)


def require_free(target: Path, *, folder: bool, force: bool) -> None:
    """AuroraError when there is something at `target` that may not be replaced."""
    if target.is_dir() and not folder:
        raise AuroraError(f"{target} is a folder; give the name of a file")
    if folder and target.exists() and not target.is_dir():
        raise AuroraError(f"{target} is a file; give the name of a folder, or of a .safetensors or .pth file")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise AuroraError(f"{target} already exists; --force replaces it")
    others = sorted(entry.name for entry in target.iterdir() if not _OF_A_MODEL.fullmatch(entry.name)) if folder else []
    if others:
        raise AuroraError(f"{target} is not replaced: it holds {others[0]!r}, which is not part of a model; "
                          "give a folder of its own")


def read_json(file: Path) -> dict[str, Any]:
    """A mapping from a JSON file. AuroraError when it holds anything else."""
    try:
        read = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise AuroraError(f"{file} cannot be read as JSON: {why}") from error
    if not isinstance(read, dict):
        raise AuroraError(f"{file} cannot be read: it does not hold a JSON object")
    return read


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping for people to read."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require_room(target: Path, wanted: int) -> None:
    """AuroraError when the disk has no room for so many bytes."""
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise AuroraError(f"{target} needs {wanted / 2**30:.2f} GiB; {free / 2**30:.2f} GiB are free on its disk")


def remove(path: Path) -> None:
    """Removes a file or a whole folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
