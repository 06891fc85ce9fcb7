"""What happens around the rows: curves, checkpoints, and an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from aurora.errors import AuroraError
from aurora.training.checkpoints import checkpoint_path, write_checkpoint
from aurora.training.data import count_bad_samples
from aurora.training.module import AuroraModule
from aurora.training.parallel import sum_over_ranks, world_size
from aurora.training.state import all_finite
from aurora.types import PackedBatch


class Curves(L.Callback):
    """Hands the report of every step to the loggers."""

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and module.report is not None:
            metrics = {**module.report._asdict(), **_data_metrics(trainer)}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=module.step)


class EndOfStage(L.Callback):
    """Ends the stage after its last step, which a resumed run may have taken already."""

    def on_fit_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        done = module.step if module.resume is None else module.resume["step"]
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
    """Saves every `every` steps, at the end, and when something goes wrong.

    Between two steps only gradients change, so what is saved in the middle of a step is the end of the step before:
    its rows are read again.
    """

    def __init__(self, *, folder: Path, every: int, fingerprint: Mapping[str, Any], tell: Callable[[str], None]
                 ) -> None:
        self.folder = folder
        self.every = every
        self.fingerprint = fingerprint
        self.tell = tell
        self._saved = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and module.step % self.every == 0:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.save(trainer, module)

    def on_exception(self, trainer: L.Trainer, module: AuroraModule, exception: BaseException) -> None:
        # Gathering shards needs every rank, and the others may be anywhere when one fails.
        gathers = isinstance(trainer.strategy, ModelParallelStrategy) and world_size() > 1
        if module.model is not None and module.step > 0 and not module.changing and not gathers:
            self.save(trainer, module)
            self.tell(f"stopped after step {module.step}, which is saved; the same command goes on there")

    def save(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Writes the state after the last step, unless it is on disk already. Collective when sharded."""
        if module.step == self._saved or (module.step == 0):
            return
        state = module.training_state(keep=module.global_rank == 0)
        self._saved = module.step
        if module.global_rank != 0:
            return
        if not all_finite(state["weights"]):
            raise AuroraError(f"the weights after step {module.step} are not finite and were not saved; the last good "
                              f"checkpoint is in {self.folder}")
        if not checkpoint_path(self.folder, module.step).exists():
            write_checkpoint(self.folder, module.step, {**state, "data": trainer.datamodule.state_dict(),
                                                        "fingerprint": dict(self.fingerprint)})


def _data_metrics(trainer: L.Trainer) -> dict[str, float]:
    """What the data module counts of its own, such as samples that could not be read."""
    count = count_bad_samples(trainer.datamodule)
    return {} if count is None else {"bad_samples": count}
