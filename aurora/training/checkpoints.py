"""Training checkpoints: a folder per step, written beside training, read back by any number of processes.

    step-12/shard-00001-….safetensors   what each rank holds of the tensors (torch distributed checkpoint, no pickle)
            state.json                  everything else: counters, data position, fingerprint
            COMMITTED                   size and sha256 of every file, written last
    newest                              the name of the newest whole checkpoint, replaced at once

A folder without COMMITTED is none. The last two stay; an older one goes only after the newer was read back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from aurora.errors import AuroraError

KEPT = 2
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
CHECKPOINTS = "checkpoints"  # the folder of a stage
STATE, COMMITTED, NEWEST = "state.json", "COMMITTED", "newest"
FILE_BYTES = 1 << 30  # of a file of tensors, which is held in memory once more while it is written
FAILURES = 2  # saves in a row that may fail before training stops

Tell = Callable[[str], None]
Tensors = dict[str, Tensor]
Files = dict[str, tuple[int, str]]  # name → bytes, sha256


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    path: Path
    state: dict[str, Any]  # what was given as `state`

    @property
    def step(self) -> int:
        """The optimizer steps that it comes after."""
        return int(self.state["step"])

    def names(self) -> set[str]:
        """The names of its tensors."""
        return set(HuggingFaceStorageReader(str(self.path)).read_metadata().state_dict_metadata)

    def load(self, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
        """Fills tensors in place, each rank with its own part of sharded ones. Collective with a `group`."""
        _no_warning()
        load_tensors(dict(tensors), storage_reader=HuggingFaceStorageReader(str(self.path)), process_group=group,
                     no_dist=group is None)


def refuse_unsafe_loading() -> None:
    """AuroraError when the environment makes torch run the code that a weight file may hold."""
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
    return folder / f"step-{step}"


def is_committed(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (path / COMMITTED).is_file()


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

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; waits for the one before. AuroraError when saving failed twice in a row."""
        self.wait()
        if self._failures >= FAILURES:
            raise AuroraError(f"{self._failures} checkpoints in a row could not be written: {self._error}")
        staged: Any = self._stager.stage(tensors)
        self._thread = threading.Thread(target=self._run, args=(step, staged, dict(state)), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until everything is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """The same, and AuroraError when the last checkpoint is not there."""
        self.wait()
        if self._failures:
            raise AuroraError(f"the last checkpoint could not be written: {self._error}")

    def _run(self, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
        try:
            self._write(checkpoint_path(self.folder, step), tensors, state)
            self._failures, self._error = 0, None
        # whatever it is, training goes on and the next save tries again; torch's own is no Exception
        except (Exception, CheckpointException) as error:
            self._failures, self._error = self._failures + 1, _said(error)
            self.tell(f"the checkpoint after step {step} could not be written: {self._error}")

    def _write(self, path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
        self._agreed(lambda: _begin(path, state) if self._leads else None)
        _no_warning()
        writer = HuggingFaceStorageWriter(str(path), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        save_tensors(tensors, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
        mine = [file.name for file in path.glob(f"shard-{self._rank + 1:05d}-*")]
        parts: list[Files] = self._agreed(lambda: digests(path, [*mine, *([STATE] if self._leads else [])]))
        self._agreed(lambda: _commit(path, {name: entry for part in parts for name, entry in part.items()})
                     if self._leads else None)
        self._agreed(lambda: _require(digests(path, mine), parts[self._rank], path))
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


def newest_checkpoint(folder: Path, tell: Tell, *, verify: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint, or None; broken ones are named through `tell` and passed over.

    Without `verify` only sizes are compared: on the ranks that follow the choice of the first.
    """
    found = _by_age(folder)
    for path in found:
        wrong = problem(path, verify=verify)
        if wrong is None:
            if path != found[0]:
                tell(f"going back to {path.name}: {_step(found[0]) - _step(path)} steps are lost and made again")
            return Checkpoint(path, json.loads((path / STATE).read_bytes()))
        tell(f"{path} is broken ({wrong}); trying the one before")
    if found:
        raise AuroraError(f"none of the checkpoints in {folder} can be read; restart=true begins the stage again")
    return None


def checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint after a step. AuroraError when it is not there."""
    path = checkpoint_path(folder, step)
    if not is_committed(path):
        raise AuroraError(f"there is no checkpoint {path}; all nodes must see the same folder as run=")
    return Checkpoint(path, json.loads((path / STATE).read_bytes()))


def problem(path: Path, *, verify: bool = True) -> str | None:
    """What is wrong with a committed checkpoint; None when every file has its size and, with `verify`, its digest."""
    try:
        files: Files = {name: tuple(entry) for name, entry in json.loads((path / COMMITTED).read_bytes()).items()}
        for name, (size, _) in files.items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes, not {size}"
        if verify:
            _require(digests(path, files), files, path)
    except (OSError, ValueError, TypeError, AttributeError, AuroraError) as error:
        return str(error)
    return None


def sweep(folder: Path) -> None:
    """Removes what a killed save has left."""
    for path in folder.glob("step-*"):
        if path.is_dir() and not is_committed(path):
            shutil.rmtree(path, ignore_errors=True)


def digests(path: Path, names: Iterable[str]) -> Files:
    """Size and sha256 of files, several at a time."""
    names = list(names)
    with ThreadPoolExecutor(min(8, len(names) or 1)) as pool:
        return dict(zip(names, pool.map(_digest, [path / name for name in names]), strict=True))


def _digest(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
        return file.tell(), digest.hexdigest()


def _require(found: Files, wanted: Files, path: Path) -> None:
    for name in found:
        if tuple(found[name]) != tuple(wanted[name]):
            raise AuroraError(f"{path / name} is not what was written")


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
    for old in _by_age(folder)[KEPT:]:
        # first the marker: a folder that is half gone is no checkpoint
        (old / COMMITTED).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _by_age(folder: Path) -> list[Path]:
    """Committed checkpoints, the newest first."""
    committed = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and is_committed(path)]
    return sorted(committed, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


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


def _no_warning() -> None:
    # said although it was asked to work without torch.distributed
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
