"""Ends a run that hangs, and writes where every process stood, so that a launcher can start it again."""

import faulthandler
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import lightning as L

from aurora.errors import TRY_AGAIN
from aurora.training.distributed.collectives import gather
from aurora.training.module import AuroraModule

STACKS = "stacks"  # the folder in that of the stage
NOTICE_SECONDS = 1.0  # after which every rank knows that one hangs


class Watchdog(L.Callback):
    """Ends all processes when one of them has read no row for `seconds`; the stacks of all go to `folder`.

    The first to notice leaves a note there, which the others see: a rank that waits for another hangs as well, but one
    that is dead for the others may think it works. A process that holds Python's lock cannot notice anything; a timer
    of the C library ends it a little later. The heartbeat is `AuroraModule.rows_read`. It watches from the start of
    training to the end of the trainer's run, whichever way that ends.
    """

    def __init__(self, *, folder: Path, seconds: float | None) -> None:
        self.folder, self.seconds = folder, seconds
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        if self.seconds is None:
            return
        # a note of an attempt before, or of one of its processes that is still alive, is not ours
        token = gather(secrets.token_hex(4))[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rank, self._note = module.global_rank, self.folder / f".hung-{token}"
        if self._rank == 0:
            for old in self.folder.glob(".hung-*"):
                old.unlink(missing_ok=True)
        self._file = (self.folder / f"rank-{self._rank}.txt").open("a", encoding="utf-8")
        self._closed.clear()
        self._rearm(self.seconds)
        self._thread = threading.Thread(target=self._watch, args=(trainer, module, self.seconds), name="watchdog",
                                        daemon=True)
        self._thread.start()

    def on_exception(self, trainer: L.Trainer, module: AuroraModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: L.Trainer, module: AuroraModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            path = Path(self._file.name)
            # a run in which nothing hung leaves nothing behind, but for another rank's file or a folder that holds one
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
                path.parent.rmdir()

    def _rearm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds + 3 * NOTICE_SECONDS, exit=True, file=self._file)

    def _watch(self, trainer: L.Trainer, module: AuroraModule, seconds: float) -> None:
        rows, beat = module.rows_read, time.monotonic()
        while not self._closed.wait(NOTICE_SECONDS / 4):
            if module.rows_read != rows or not (trainer.training or trainer.validating):
                rows, beat = module.rows_read, time.monotonic()
                self._rearm(seconds)
            quiet = time.monotonic() - beat
            if quiet > seconds:
                self._end(trainer, f"has finished no row for {quiet:.0f} s (trainer.watchdog_seconds)")
            elif self._note.exists():
                self._end(trainer, "ends because another rank hangs")

    def _end(self, trainer: L.Trainer, why: str) -> None:
        self._note.touch()
        who, step = f"rank {self._rank} on {socket.gethostname()}", trainer.global_step
        self._file.write(f"{who}, after step {step}: {why}\n\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file)
        sys.stderr.write(f"aurora: error: {who} {why} after step {step}; {self.folder} shows where every process "
                         f"stood. Exit status {TRY_AGAIN}; the same command resumes from the last checkpoint\n")
        sys.stderr.flush()
        # the first to end breaks the connections that the others wait in, and a launcher then kills them
        time.sleep(NOTICE_SECONDS)
        os._exit(TRY_AGAIN)
