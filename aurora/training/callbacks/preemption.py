"""An orderly end on SIGTERM, SIGUSR1 (SLURM's warning before the time is up) and ^C."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from aurora.steps import Step
from aurora.training.distributed.collectives import sum_over_ranks, world_size
from aurora.training.module import AuroraModule, StepInterrupted

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)  # the first counts when several come
KILLED = 128  # the exit status is this and the number of the signal


class Preemption(L.Callback):
    """Raises StepInterrupted after the row at hand on one process, after the step on several, which agree on it then.

    So the step that was taken is logged, and no validation is begun. A handler runs anywhere, also inside of a save, so
    it only leaves a note. A second ^C ends the process at once.
    """

    def __init__(self) -> None:
        self.stopped: signal.Signals | None = None
        self.logged = -1  # the last step whose metrics are written: Lightning does so at the very end of a step
        self._received: set[signal.Signals] = set()
        self._module: AuroraModule | None = None

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._module, self.logged = module, trainer.global_step
        # Lightning has set its own handlers by now, and restores those before them at the end
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: Step,
                           batch_idx: int) -> None:
        self._agree(module)

    def on_train_batch_start(self, trainer: L.Trainer, module: AuroraModule, batch: Step, batch_idx: int) -> None:
        self.logged = trainer.global_step
        self._leave()

    def on_validation_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.logged = trainer.global_step
        self._leave()

    def on_train_epoch_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.logged = trainer.global_step

    def on_validation_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: Step,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        """A validation is given up; it runs again when the same command resumes."""
        self._agree(module)
        self._leave()

    def on_exception(self, trainer: L.Trainer, module: AuroraModule, exception: BaseException) -> None:
        if world_size() == 1:
            self._agree(module)

    def _agree(self, module: AuroraModule) -> None:
        """Decides whether training ends, because one of the processes was asked to. Collective."""
        asked = sum_over_ranks([float(number in self._received) for number in SIGNALS], module.device)
        self.stopped = next((number for number, count in zip(SIGNALS, asked, strict=True) if count > 0), None)

    def _leave(self) -> None:
        """On all ranks at the same place, so that all can save."""
        if self.stopped is not None:
            raise StepInterrupted

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT in self._received and world_size() == 1:
            raise KeyboardInterrupt
        self._received.add(signal.Signals(number))
        if self._module is not None and world_size() == 1:
            self._module.interrupted = True


@contextmanager
def requeued_at_once(*, first: bool, report: Callable[[str], None]) -> Iterator[None]:
    """Handles SIGUSR1 in a job of SLURM outside of training, where there is nothing to save: the first process requeues
    the job and exits. The others ignore it; their launcher ends them with it."""

    def leave(number: int, frame: FrameType | None) -> None:
        if first:
            requeue(report)
            sys.exit(KILLED + number)

    if _job() is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def requeue(report: Callable[[str], None]) -> None:
    """Puts this job of SLURM back into its queue; without SLURM nothing happens."""
    job = _job()
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        report(f"the job {job} could not be requeued ({reason}); submit it again, the same command resumes")
        return
    report(f"the job {job} is back in the queue")


def _job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None
