"""An orderly end when somebody asks for one: SIGTERM, SIGUSR1 (SLURM's word before the time is up), ^C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L

from aurora.training.module import AuroraModule
from aurora.training.parallel import sum_over_ranks, world_size
from aurora.types import PackedBatch

HEARD = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)  # what counts first when several come
KILLED = 128  # the exit status is this and the number of the signal


class StopOnSignal(L.Callback):
    """Ends training after the row on one process, after the step on several, which agree on it then.

    A handler runs anywhere, also inside of a save, so it only leaves a note. A second ^C ends the process at once.
    """

    def __init__(self) -> None:
        self._asked: set[signal.Signals] = set()
        self.stopped: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        # Lightning has set its own handler by now and restores those before it at the end.
        if threading.current_thread() is threading.main_thread():
            for heard in HEARD:
                signal.signal(heard, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if world_size() == 1 or batch.closes_step:
            self.look(trainer, module)

    def look(self, trainer: L.Trainer, module: AuroraModule) -> bool:
        """Whether training is to end, because somebody asked one of the processes. Collective."""
        asked = sum_over_ranks([float(heard in self._asked) for heard in HEARD], module.device)
        self.stopped = next((heard for heard, count in zip(HEARD, asked, strict=True) if count > 0), None)
        if self.stopped is not None:
            trainer.should_stop = True
        return self.stopped is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT in self._asked and world_size() == 1:
            raise KeyboardInterrupt
        self._asked.add(signal.Signals(number))


def requeue_at_once(*, first: bool, tell: Callable[[str], None]) -> None:
    """Heeds SIGUSR1 in a job of SLURM outside of training, where there is nothing to be saved: the first process puts
    the job back and ends. The others pay no heed; their launcher ends them with it."""

    def leave(number: int, frame: FrameType | None) -> None:
        if first:
            requeue(tell)
            sys.exit(KILLED + number)

    if _job() is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, leave)


def requeue(tell: Callable[[str], None]) -> None:
    """Puts this job of SLURM back into its queue; without SLURM nothing happens."""
    job = _job()
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        tell(f"the job {job} could not be requeued ({said}); submit it again, the same command goes on")
        return
    tell(f"the job {job} is back in the queue")


def _job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None
