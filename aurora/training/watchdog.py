"""Ends a run that hangs, and says where every process stood, so that a launcher can start it again."""

from __future__ import annotations

import faulthandler
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import lightning as L

from aurora.errors import TRY_AGAIN
from aurora.training.module import AuroraModule
from aurora.training.parallel import gather
from aurora.types import PackedBatch

STACKS = "stacks"  # the folder in that of the stage
HUNG_EXIT = TRY_AGAIN
NOTICE_SECONDS = 1.0  # after which every rank knows that one hangs


class Watchdog(L.Callback):
    """Ends all processes when one of them has finished no row for `seconds`; the stacks of all go to `folder`.

    The first to notice leaves a note there, which the others see: a rank that waits for another hangs as well, but one
    that is dead for the others may think it works. A process that holds Python's lock cannot notice anything; a timer
    of the C library ends it a little later.
    """

    def __init__(self, *, folder: Path, seconds: float | None) -> None:
        self.folder, self.seconds = folder, seconds
        self._beat = time.monotonic()
        self._step = self._rank = 0
        self._note: Path | None = None
        self._file: IO[str] | None = None
        self._closed = threading.Event()

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        if self.seconds is None:
            return
        # a note of an attempt before, or of one of its processes that is still alive, is none of ours
        token = gather(secrets.token_hex(4))[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rank, self._note = module.global_rank, self.folder / f".hung-{token}"
        if self._rank == 0:
            for old in self.folder.glob(".hung-*"):
                old.unlink(missing_ok=True)
        self._file = (self.folder / f"rank-{self._rank}.txt").open("a", encoding="utf-8")
        self.alive(module)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        self.alive(module)

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.alive(module)

    def alive(self, module: AuroraModule) -> None:
        """Something was finished that took its time."""
        self._beat, self._step = time.monotonic(), module.step
        if self.seconds is not None and self._file is not None:
            faulthandler.dump_traceback_later(self.seconds + 3 * NOTICE_SECONDS, exit=True, file=self._file)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches until the end of the block, from the start of training on."""
        try:
            yield
        finally:
            self._closed.set()
            if self._file is not None:
                faulthandler.cancel_dump_traceback_later()
                self._file.close()
                _remove_empty(Path(self._file.name))

    def _watch(self) -> None:
        assert self.seconds is not None and self._note is not None
        while not self._closed.wait(NOTICE_SECONDS / 4):
            quiet = time.monotonic() - self._beat
            if quiet > self.seconds:
                self._end(f"has finished no row for {quiet:.0f} s (trainer.watchdog_seconds)")
            elif self._note.exists():
                self._end("was told that another rank hangs")

    def _end(self, why: str) -> None:
        assert self._note is not None and self._file is not None
        self._note.touch()
        who = f"rank {self._rank} on {socket.gethostname()}"
        self._file.write(f"{who}, after step {self._step}: {why}\n\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file)
        sys.stderr.write(f"aurora: error: {who} {why} after step {self._step}; {self.folder} tells where every process "
                         f"stood. Ending with status {HUNG_EXIT}; the same command goes on at the last checkpoint\n")
        sys.stderr.flush()
        # whoever ends first tears down what the others wait in, and a launcher then kills them
        time.sleep(NOTICE_SECONDS)
        os._exit(HUNG_EXIT)


def _remove_empty(path: Path) -> None:
    """A run in which nothing hung leaves nothing behind."""
    with suppress(OSError):  # on another rank's file, or a folder that holds one
        if path.stat().st_size == 0:
            path.unlink()
        path.parent.rmdir()
