"""Arrays that are made once and mapped by every process of a machine.

A set of arrays is a folder `IDENTITY` with one npy file each and `facts.json`; it appears by renaming, so that it is
whole or not there. The folder that holds the sets may be deleted whenever nothing runs.
"""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aurora.files import replacing, room_for

Allocate = Callable[[str, np.dtype[Any], int], np.ndarray]
Fill = Callable[[Allocate], dict[str, Any]]
"""Makes the arrays with what it is given and returns what else is known of them, as JSON."""


class Arrays(NamedTuple):
    """Arrays by name, and where they are mapped from; None: they are this process's own."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    folder: Path | None


def shared_arrays(folders: Sequence[Path], identity: str, fill: Fill) -> Arrays:
    """The arrays of an identity, made unless they are there, and kept in the first of `folders` that can be written.
    Processes that ask at the same time wait for the first."""
    for folder in folders:
        if folder.joinpath(identity, "facts.json").is_file():
            return load_arrays(folder / identity)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = folder.joinpath(f"{identity}.lock").open("w")
        except OSError:
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.joinpath(identity, "facts.json").is_file():
                # under the lock nobody else writes here
                with room_for(folder / identity), replacing(folder / identity, folder=True) as partial:
                    _write(partial, fill)
        return load_arrays(folder / identity)
    own: dict[str, np.ndarray] = {}
    facts = fill(lambda name, dtype, length: own.setdefault(name, np.empty(length, dtype)))
    return Arrays(own, facts, None)


def load_arrays(folder: Path) -> Arrays:
    """Maps a set of arrays that is there."""
    arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    return Arrays(arrays, json.loads(folder.joinpath("facts.json").read_bytes()), folder)


def _write(folder: Path, fill: Fill) -> None:
    mapped: list[np.memmap[Any, Any]] = []

    def allocate(name: str, dtype: np.dtype[Any], length: int) -> np.ndarray:
        if length == 0:  # nothing can be mapped of an empty file
            np.save(folder / f"{name}.npy", np.empty(0, dtype))
            return np.empty(0, dtype)
        mapped.append(np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (length,)))
        if sys.platform == "linux":
            # A mapped file has no room of its own yet: on a full disk, writing into it would kill the process.
            with open(folder / f"{name}.npy", "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return mapped[-1]

    facts = fill(allocate)
    for array in mapped:
        array.flush()
    folder.joinpath("facts.json").write_text(json.dumps(facts), encoding="utf-8")
