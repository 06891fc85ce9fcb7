"""What a stage leaves in RUN/STAGE: which configuration it belongs to, whether it is finished, and who writes there."""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from aurora.config import CONFIG_FILE, Config, differences
from aurora.curve import METRICS_FILE
from aurora.errors import AuroraError
from aurora.files import remove, replace_file
from aurora.registry import MODEL_SLOTS
from aurora.training.checkpoint.layout import CHECKPOINTS
from aurora.weights.io import weight_files
from aurora.weights.model_folder import WEIGHTS_FILE

Fingerprint = dict[str, Any]
READING_ONLY = ("root", "workers", "quarantine", "max_bad_rate", "bad_rate_after", "sample_seconds", "worker_bytes",
                "prefetch_rows", "prefetch_bytes", "verify", "cache", "cache_bytes")
"""Options of the data that say where samples are read, how fast, and what is tolerated, but not which."""

SAMPLES = 256
SAMPLE_BYTES = 2**16


class StageFolder:
    def __init__(self, run: str | Path, stage: str) -> None:
        self.path = Path(run) / stage
        self.model = self.path / "model"
        self.checkpoints = self.path / CHECKPOINTS
        self._done = self.path / "done.json"

    def finished(self) -> Fingerprint | None:
        """What the finished stage was trained with; None while it is unfinished."""
        if not self._done.is_file() or not (self.model / WEIGHTS_FILE).is_file():
            return None
        try:
            fingerprint: Fingerprint = json.loads(self._done.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AuroraError(f"{self._done} cannot be read ({error}); restart=true begins the stage again") from error
        return fingerprint

    def write_config(self, config: Config) -> None:
        """Writes the whole composed config, as this attempt uses it."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.tree, sort_keys=False)
        (self.path / CONFIG_FILE).write_text(text, encoding="utf-8")

    def finish(self, fingerprint: Fingerprint) -> None:
        """Marks the stage as done, once its model is written."""
        replace_file(self._done, json.dumps(fingerprint, indent=1).encode())

    def bytes_on_disk(self) -> int:
        """Bytes of the checkpoints and models that are there."""
        folders = [self.checkpoints, *self.path.glob("model*")]
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    def clear(self) -> None:
        """Forgets a former attempt; its model stays until a new one replaces it. OSError when a checkpoint cannot be
        removed, which the next attempt would go on from."""
        self._done.unlink(missing_ok=True)
        # one by one: the folder itself may be a link to another disk
        for path in self.checkpoints.glob("*"):
            remove(path)
        (self.path / METRICS_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)


WEIGHTS_BY = (*MODEL_SLOTS, "dtype", "seed", "start")
"""What of a fingerprint decides the weights that are in no checkpoint."""


def fingerprint(config: Config, stage: str, initial: str | None) -> Fingerprint:
    """Everything that decides what a stage learns, as JSON; `initial` is the model folder that it starts from."""
    tree, trainer = config.tree, config.tree.get("trainer", {})
    recipe = {key: value for key, value in tree["stages"][stage].items() if key != "validation"}
    decided = {
        "stages": {stage: recipe},
        **{slot: tree[slot] for slot in MODEL_SLOTS},
        "reader": tree.get("reader"),
        "data": {key: value for key, value in tree["data"].items() if key not in READING_ONLY},
        "seed": config.seed,
        "dtype": config.model.dtype,
        "trainer": {"precision": config.trainer.precision,
                    **{key: trainer[key] for key in ("spike", "backprop_tokens") if trainer.get(key)}},
        "start": _initial_identity(config, initial),
    }
    plain: Fingerprint = json.loads(json.dumps(decided))
    return plain


def require_same(stage: str, before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """AuroraError that says what changed since a stage was `what`."""
    changed = differences(before, now)
    if changed:
        raise AuroraError(f"stage {stage!r} was {what} with another configuration: {'; '.join(changed)}. "
                          "Set it back, give another run=, or begin the stage again with restart=true")


def _initial_identity(config: Config, initial: str | None) -> dict[str, str]:
    """What the weights are and not where they lie: frozen ones are in no checkpoint, and are read there again."""
    if initial is not None:
        return {"model": "".join(map(_sampled_hash, weight_files(Path(initial))))}
    return {slot: "random" if path is None else "".join(map(_sampled_hash, weight_files(Path(path))))
            for slot, path in config.base_paths().items()}


def _sampled_hash(path: Path) -> str:
    """A hash of the file's size and of pieces spread evenly over it: training changes weights all over."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


# ---- one run at a time -----------------------------------------------------------------------------------------

LOCK, HOLDER = ".lock", ".lock-holder"
LOCAL_SECONDS = 5.0  # that a process of this machine is waited for, which may be about to end


@contextmanager
def locked(folder: Path, *, patience: float, report: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder until the end of the block, or of the process: two runs would mix their metrics and checkpoints.

    AuroraError when another process holds it for `patience` seconds: a file server keeps the lock of a machine that is
    gone for a while. One of this machine is waited for LOCAL_SECONDS at most. Where the file system has no locks,
    nothing is held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        _acquire(lock, folder, patience, report)
    except (NotImplementedError, OSError):
        yield
        return
    try:
        (folder / HOLDER).write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, patience: float, report: Callable[[str], None]) -> None:
    begun, reported = time.monotonic(), False
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0.25)
            return
        holder = f"{socket.gethostname()} unknown"
        with suppress(OSError):
            holder = (folder / HOLDER).read_text(encoding="utf-8")
        host, _, process = holder.partition(" ")
        most = min(patience, LOCAL_SECONDS) if host == socket.gethostname() else patience
        if time.monotonic() - begun > most:
            raise AuroraError(f"process {process} on {host} trains in {folder}; end it first, or give another run=")
        if not reported:
            report(f"waiting for process {process} on {host}, which trains in {folder}")
            reported = True
