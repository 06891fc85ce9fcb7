"""Training checkpoints as files: written atomically, verified before an older one goes, read without pickle."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from aurora.errors import AuroraError

KEPT = 2
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse_unsafe_loading() -> None:
    """AuroraError when the environment makes torch run the code that a checkpoint may hold."""
    if os.environ.get(UNSAFE):
        raise AuroraError(f"{UNSAFE} is set: it makes torch execute code from checkpoint files. Unset it")


def require_room(folder: Path, wanted: int) -> None:
    """AuroraError when the disk has no room for so many bytes: better said now than at the first save."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise AuroraError(f"{folder} is on a disk with {free / 2**30:.1f} GiB free; the stage writes up to "
                          f"{wanted / 2**30:.1f} GiB there (checkpoints and model)")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"step-{step}.ckpt"


def write_checkpoint(folder: Path, step: int, payload: Mapping[str, Any]) -> Path:
    """Writes a checkpoint so that readers see all of it or nothing, then drops what is older than the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    partial = folder / f".{path.name}.tmp"
    try:
        with partial.open("wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise AuroraError(f"the checkpoint {path} could not be written: {error}") from error
    if problem(path) is None:
        for old in _by_age(folder)[KEPT:]:
            old.unlink(missing_ok=True)
    return path


def newest_checkpoint(folder: Path, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None; broken ones are named through `tell` and passed over."""
    for partial in folder.glob(".*.tmp"):
        partial.unlink(missing_ok=True)
    found = _by_age(folder)
    for path in found:
        wrong = problem(path)
        if wrong is None:
            payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return payload
        tell(f"{path} is broken ({wrong}); trying the one before")
    if found:
        raise AuroraError(f"none of the checkpoints in {folder} can be read; restart=true begins the stage again")
    return None


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None when every byte of it has its checksum and it loads."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"wrong checksum in {broken}"
        torch.load(path, map_location="meta", weights_only=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _by_age(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    numbered = [(int(path.stem.removeprefix("step-")), path) for path in folder.glob("step-*.ckpt")
                if path.stem.removeprefix("step-").isdigit()]
    return [path for _, path in sorted(numbered, reverse=True)]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
