"""One run at a time writes into a folder: two would mix their curves and take each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from aurora.errors import AuroraError

LOCK = ".lock"
HERE_SECONDS = 5.0  # that a process of this machine is waited for, which may be about to end
LOOK_SECONDS = 0.25  # between two looks at a lock


@contextmanager
def held(folder: Path, *, patience: float, tell: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder until the end of the block, or of the process.

    AuroraError when another process holds it for `patience` seconds: a file server keeps the lock of a machine that is
    gone for a while. One of this machine is waited for HERE_SECONDS at most. Where the file system knows no locks
    nothing is held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a lock of this kind ends with its process, and the loader's workers do not inherit it
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        _take(file, folder, patience, tell)
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}")
        file.flush()
        yield


def _take(file: IO[str], folder: Path, patience: float, tell: Callable[[str], None]) -> None:
    said, begun = False, time.monotonic()
    while (holder := _tried(file)) is not None:
        host, _, process = holder.partition(" ")
        most = min(patience, HERE_SECONDS) if host == socket.gethostname() else patience
        if time.monotonic() - begun > most:
            raise AuroraError(f"process {process} on {host} trains in {folder}; end it first, or give another run=")
        if not said:
            tell(f"waiting for process {process} on {host}, which trains in {folder}")
            said = True
        time.sleep(LOOK_SECONDS)


def _tried(file: IO[str]) -> str | None:
    """None once this process holds the lock; else the host and number of the one that does."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return file.read() or f"{socket.gethostname()} unknown"
    except OSError:  # no locks here
        return None
    return None
