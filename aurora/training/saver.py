"""Writes checkpoints beside training, as `checkpoints.py` reads them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from aurora.errors import AuroraError
from aurora.training.checkpoints import (
    COMMITTED,
    KEPT,
    NEWEST,
    STATE,
    Files,
    Tell,
    Tensors,
    by_age,
    checkpoint_path,
    digests,
    require_written,
    silence_no_dist,
)

FILE_BYTES = 1 << 30  # of a file of tensors, which is held in memory once more while it is written
FAILURES = 2  # saves in a row that may fail before training stops


class Saver:
    """Writes checkpoints in a thread, so that training waits for a copy in memory and not for the disk.

    With a `group` (of the CPU, used by nobody else) every rank writes its own part and all calls are collective;
    without one this process alone writes.
    """

    def __init__(self, folder: Path, *, group: dist.ProcessGroup | None, tell: Tell) -> None:
        self.folder, self.group, self.tell = folder, group, tell
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._failures = 0
        self._kind: type[Exception] = AuroraError  # what is raised for them

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; waits for the one before. Raises like `finish` when two in a row failed."""
        self.wait()
        if self._failures >= FAILURES:
            raise self._kind(f"{self._failures} checkpoints in a row could not be written: {self._error}")
        staged: Any = self._stager.stage(tensors)
        self._thread = threading.Thread(target=self._run, args=(step, staged, dict(state)), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until everything is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """The same, and AuroraError when the last checkpoint is not there; RuntimeError when another rank was lost."""
        self.wait()
        if self._failures:
            raise self._kind(f"the last checkpoint could not be written: {self._error}")

    def _run(self, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
        try:
            self._write(checkpoint_path(self.folder, step), tensors, state)
            self._failures, self._error = 0, None
        # whatever it is, training goes on and the next save tries again; torch's own is no Exception
        except (Exception, CheckpointException) as error:
            self._failures, self._error = self._failures + 1, _said(error)
            # a lost rank is nothing that the user has to change: whoever started this one may try again
            self._kind = RuntimeError if isinstance(error, RuntimeError) else AuroraError
            self.tell(f"the checkpoint after step {step} could not be written: {self._error}")

    def _write(self, path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
        self._agreed(lambda: _begin(path, state) if self._leads else None)
        silence_no_dist()
        writer = HuggingFaceStorageWriter(str(path), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        save_tensors(tensors, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
        mine = [file.name for file in path.glob(f"shard-{self._rank + 1:05d}-*")]
        parts: list[Files] = self._agreed(lambda: digests(path, [*mine, *([STATE] if self._leads else [])]))
        self._agreed(lambda: _commit(path, {name: entry for part in parts for name, entry in part.items()})
                     if self._leads else None)
        self._agreed(lambda: require_written(digests(path, mine), parts[self._rank], path))
        if self._leads:
            _drop_old(self.folder)

    @property
    def _rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def _leads(self) -> bool:
        return self._rank == 0

    def _agreed(self, work: Callable[[], Any]) -> list[Any]:
        """What the work of every rank gave. AuroraError on all of them when one failed."""
        try:
            mine: tuple[str | None, Any] = (None, work())
        except (OSError, AuroraError) as error:
            mine = (f"rank {self._rank}: {error}" if self.group else str(error), None)
        everyone: list[Any] = [mine]
        if self.group is not None:
            everyone = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(everyone, mine, group=self.group)
        failed = [said for said, _ in everyone if said is not None]
        if failed:
            raise AuroraError("; ".join(failed))
        return [found for _, found in everyone]


def _files(tensors: Tensors) -> dict[str, int]:
    """Which file each tensor goes to: the same on all ranks, since sharded tensors tell their whole size."""
    numbers, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > FILE_BYTES:
            number, size = number + 1, 0
        numbers[name] = number
        size += tensor.nbytes
    return numbers


def _begin(path: Path, state: Mapping[str, Any]) -> None:
    """An empty folder with the state: what stood there was never committed, or is written again."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    _write_synced(path / STATE, json.dumps(state, indent=1))


def _commit(path: Path, files: Files) -> None:
    _write_synced(path / COMMITTED, json.dumps(files, indent=1))
    _sync_folder(path)
    _write_synced(path.parent / NEWEST, path.name)
    _sync_folder(path.parent)


def _drop_old(folder: Path) -> None:
    for old in by_age(folder)[KEPT:]:
        # first the marker: a folder that is half gone is no checkpoint
        (old / COMMITTED).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_synced(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _said(error: BaseException) -> str:
    """An error in one line; torch's own holds those of the ranks with their tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
    return " ".join(str(error).split())
