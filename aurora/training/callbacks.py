"""What happens around the rows: curves, checkpoints, and an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from aurora.errors import AuroraError
from aurora.training.checkpoints import Saver, checkpoint_path, is_committed, sweep
from aurora.training.data import count_bad_samples
from aurora.training.module import AuroraModule
from aurora.training.parallel import barrier, shared_group, sum_over_ranks, world_size
from aurora.training.state import all_finite
from aurora.types import PackedBatch


class Curves(L.Callback):
    """Hands the report of every step to the loggers."""

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and module.report is not None:
            report = {key: value for key, value in module.report._asdict().items() if value is not None}
            metrics = {**report, **module.measured, **_data_metrics(trainer)}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=module.step)


class EndOfStage(L.Callback):
    """Ends the stage after its last step, which a resumed run may have taken already."""

    def on_fit_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        done = module.step if module.resume is None else module.resume.step
        trainer.should_stop = done >= module.total_steps

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if module.step >= module.total_steps:
            trainer.should_stop = True


class StopOnSignal(L.Callback):
    """Turns SIGTERM into an orderly end: after the row on one process; after the step on several, which agree then."""

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        # Lightning has set its own handler by now and restores the one before it at the end.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if world_size() == 1:
            self.stopped = self.asked
        elif batch.closes_step:
            self.stopped = sum_over_ranks([float(self.asked)], module.device)[0] > 0
        if self.stopped:
            trainer.should_stop = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Checkpoints(L.Callback):
    """Saves before the first step, every `every` steps, at the end, and when something goes wrong.

    Training waits for a copy of the weights in memory, not for the disk. Between two steps only gradients change, so
    what is saved in the middle of a step is the end of the step before: its rows are read again.
    """

    def __init__(self, *, folder: Path, every: int, fingerprint: Mapping[str, Any], tell: Callable[[str], None]
                 ) -> None:
        self.folder = folder
        self.every = every
        self.fingerprint = fingerprint
        self.tell = tell
        self._saver: Saver | None = None
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Sweeps what a killed save left. A trial save shows before the first step that the disk takes it."""
        group = shared_group() if module.sharded else None
        if module.global_rank == 0:
            sweep(self.folder)
        barrier()
        self._saver = Saver(self.folder, group=group, tell=self.tell)
        self._saved = module.step if is_committed(checkpoint_path(self.folder, module.step)) else -1
        self.save(trainer, module)
        self._saver.finish()

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and module.step % self.every == 0:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.save(trainer, module)
        if self._saver is not None:
            self._saver.finish()

    def on_exception(self, trainer: L.Trainer, module: AuroraModule, exception: BaseException) -> None:
        if self._saver is None:
            return
        # Every rank writes its own shards, and the others may be anywhere when one fails.
        if not module.changing and not module.sharded and all_finite(module.tensors()):
            self.save(trainer, module)
            self.tell(f"stopped after step {module.step}, which is saved; the same command goes on there")
        self._saver.wait()

    def save(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Begins to write the state after the last step, unless that was done. Collective when sharded."""
        if module.step == self._saved or self._saver is None:
            return
        self._saved = module.step
        if not module.sharded and module.global_rank != 0:
            return
        tensors = module.tensors()
        bad = float(not all_finite(tensors))
        if (sum_over_ranks([bad], module.device)[0] if module.sharded else bad) > 0:
            raise AuroraError(f"the weights after step {module.step} are not finite and were not saved; the last good "
                              f"checkpoint is in {self.folder}")
        self._saver.save(module.step, tensors, {**module.counters(), "data": trainer.datamodule.state_dict(),
                                                "fingerprint": dict(self.fingerprint)})


def _data_metrics(trainer: L.Trainer) -> dict[str, float]:
    """What the data module counts of its own, such as samples that could not be read."""
    count = count_bad_samples(trainer.datamodule)
    return {} if count is None else {"bad_samples": count}
