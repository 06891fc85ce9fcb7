"""Writing files atomically: a file is there as a whole or not at all, and a full disk names what had no room."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from aurora.errors import AuroraError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """AuroraError that names what is being written when the disk is full, which the system's own error does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise AuroraError(f"{path}: no room left on the disk ({error.strerror}); make room and run again: what is "
                          "done is not done again") from error


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
