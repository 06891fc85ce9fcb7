"""Writes and reads training checkpoints for Lightning, asynchronously and without pickle, as `layout.py` says."""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import _save_state_dict

from aurora.errors import AuroraError
from aurora.files import remove, replace_file, sync
from aurora.training.checkpoint.layout import (
    COMMITTED,
    NEWEST,
    STATE,
    Checkpoint,
    Files,
    Report,
    Tensors,
    digests,
    read_checkpoint,
    require_written,
    to_json,
)
from aurora.training.distributed.collectives import gather
from aurora.weights.io import plan_shards

FILE_BYTES = 1 << 30  # of a file of tensors, which is held in memory once more while it is written
MAX_FAILURES = 2  # saves in a row that may fail before training stops
RESTORE = "aurora_checkpoint"  # the key under which a loaded checkpoint hands on where its tensors are


class AuroraCheckpointIO(CheckpointIO):
    """Writes `checkpoint["state_dict"]` as safetensors and the rest as JSON, in a thread: training waits for a copy in
    memory, not for the disk. After `teardown` saves are synchronous, until `start`.

    With a `group` (gloo, used for nothing else) every rank writes its own part and saving is collective; without one
    this process alone writes. Loading returns the JSON and a `Checkpoint` under RESTORE, from which the module fills
    its tensors in place.
    """

    def __init__(self, *, report: Report, group: dist.ProcessGroup | None = None) -> None:
        self.report, self.group = report, group
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._thread: threading.Thread | None = None
        self._obsolete: list[Path] = []  # removed once a newer checkpoint is whole
        self._asynchronous = False
        self._failures: list[Exception] = []  # of saves in a row

    # ---- Lightning's interface ----

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begins to write a checkpoint; waits for the one before.

        AuroraError when two in a row could not be written, RuntimeError when another rank was lost.
        """
        if storage_options is not None:
            raise AuroraError("trainer.save_checkpoint takes no storage_options here: checkpoints are folders")
        folder, tensors = Path(path), checkpoint.pop("state_dict")
        state = to_json("checkpoint", checkpoint, folder.parent)
        self.wait()
        if len(self._failures) >= MAX_FAILURES:
            last = self._failures[-1]
            raise type(last)(f"{len(self._failures)} checkpoints in a row could not be written: {last}")
        staged: Any = self._stager.stage(tensors)
        self._thread = threading.Thread(target=self._run, args=(folder, staged, state), name="checkpoint")
        self._thread.start()
        if not self._asynchronous:
            self.finish()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Everything but the tensors, which the module loads. AuroraError when it is not a whole checkpoint."""
        self.wait()
        checkpoint: Checkpoint = read_checkpoint(Path(path))
        return {**checkpoint.state, "state_dict": {}, "optimizer_states": [], RESTORE: checkpoint}

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, once the save that is under way has succeeded."""
        self._obsolete.append(Path(path))
        if self._thread is None:
            self._remove_obsolete()

    def start(self) -> None:
        """Lets saves run asynchronously to training."""
        self._asynchronous = True

    def teardown(self) -> None:
        """Waits for the disk. Raises nothing, since Lightning has more to end after this; `finish` does, before."""
        self._asynchronous = False
        self.wait()
        self._failures.clear()

    # ---- waiting ----

    def wait(self) -> None:
        """Until everything is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._remove_obsolete()

    def finish(self) -> None:
        """The same. AuroraError when the last checkpoint could not be written, RuntimeError when a rank was lost."""
        self.wait()
        if self._failures:
            last, self._failures = self._failures[-1], []
            raise type(last)(f"the last checkpoint could not be written: {last}")

    # ---- writing, in the thread ----

    def _run(self, path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
        try:
            self._write(path, tensors, state)
            self._failures.clear()
        # whatever it is, training goes on and the next save tries again; torch's own is not an Exception
        except (Exception, CheckpointException) as error:
            # a lost rank is nothing that the user has to change: whoever started this one may try again
            kind = RuntimeError if isinstance(error, RuntimeError) else AuroraError
            self._failures.append(kind(_one_line(error)))
            self.report(f"the checkpoint {path} could not be written: {self._failures[-1]}")

    def _write(self, path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
        self._on_all_ranks(lambda: _begin(path, state) if self._rank == 0 else None)
        writer = HuggingFaceStorageWriter(str(path), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        # not `save`, which warns without a group that it works alone
        _save_state_dict(tensors, writer, self.group, no_dist=self.group is None)
        mine = [file.name for file in path.glob(f"shard-{self._rank + 1:05d}-*")]
        parts: list[Files] = self._on_all_ranks(lambda: digests(path, [*mine, *([STATE] if self._rank == 0 else [])]))
        self._on_all_ranks(lambda: _commit(path, {name: entry for part in parts for name, entry in part.items()})
                           if self._rank == 0 else None)
        # read back before an older checkpoint goes
        self._on_all_ranks(lambda: require_written(digests(path, mine), parts[self._rank], path))

    def _remove_obsolete(self) -> None:
        while self._obsolete and not self._failures:
            path = self._obsolete.pop(0)
            # first the marker: a folder that is half gone is not a checkpoint
            (path / COMMITTED).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    def _on_all_ranks(self, work: Callable[[], Any]) -> list[Any]:
        """The results of all ranks. AuroraError on all of them when one failed."""
        try:
            mine: tuple[str | None, Any] = (None, work())
        except (OSError, AuroraError) as error:
            mine = (f"rank {self._rank}: {error}" if self.group else str(error), None)
        everyone = [mine] if self.group is None else gather(mine, self.group)
        failed = [text for text, _ in everyone if text is not None]
        if failed:
            raise AuroraError("; ".join(failed))
        return [result for _, result in everyone]


def _files(tensors: Tensors) -> dict[str, int]:
    """Which file each tensor goes to: the same on all ranks, since sharded tensors have their whole size."""
    files = plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, FILE_BYTES)
    return {name: number for number, names in enumerate(files, 1) for name in names}


def _begin(path: Path, state: Mapping[str, Any]) -> None:
    """An empty folder with the state: what stood there was never committed, or is written again."""
    remove(path)
    path.mkdir(parents=True)
    replace_file(path / STATE, json.dumps(state, indent=1).encode())


def _commit(path: Path, files: Files) -> None:
    replace_file(path / COMMITTED, json.dumps(files, indent=1).encode())
    sync(path)
    replace_file(path.parent / NEWEST, path.name.encode())
    sync(path.parent)


def _one_line(error: BaseException) -> str:
    """torch's own error holds those of the ranks with their tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
    return " ".join(str(error).split())
