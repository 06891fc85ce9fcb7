"""What happens around the rows: curves, checkpoints, and an orderly end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from aurora.errors import AuroraError
from aurora.training.checkpoints import checkpoint_at, checkpoint_path, is_committed, newest_checkpoint, sweep
from aurora.training.data import data_metrics
from aurora.training.module import AuroraModule
from aurora.training.parallel import agreed, barrier, from_first_rank, shared_group, sum_over_ranks
from aurora.training.saver import Saver
from aurora.training.state import all_finite
from aurora.training.user_callbacks import UserCallbacks
from aurora.types import PackedBatch


class Curves(L.Callback):
    """Hands the report of every step to loggers and callbacks. A logger that fails is told of once."""

    def __init__(self, *, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._failed: set[type[Any]] = set()

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and module.report is not None:
            report = {key: value for key, value in module.report._asdict().items() if value is not None}
            self.write(trainer, {**report, **module.measured, **data_metrics(trainer.datamodule)}, module.step)

    def write(self, trainer: L.Trainer, metrics: Mapping[str, float], step: int) -> None:
        """Hands over what there is to say of a step, of which more may be said later."""
        # where Lightning's callbacks look; one tensor that is cut takes a third of the time of many
        trainer.callback_metrics.update(zip(metrics, torch.tensor([*metrics.values()]).unbind(), strict=True))
        for logger in trainer.loggers:
            self._log(logger, metrics, step)

    def _log(self, logger: Any, metrics: Mapping[str, float], step: int) -> None:
        try:
            logger.log_metrics(metrics, step=step)
        # a full disk, a server that is away: no curve is worth a run
        except Exception as error:
            if type(logger) not in self._failed:
                self.tell(f"{type(logger).__name__} could not write after step {step}, and training goes on: {error}")
            self._failed.add(type(logger))


class EndOfStage(L.Callback):
    """Ends the stage after its last step, which a resumed run may have taken already, or after the step in which a
    callback of any rank sets `trainer.should_stop`.

    It stands behind those callbacks: a rank that stopped by itself, or within a step, would leave the others waiting.
    """

    def __init__(self, *, user_callbacks: UserCallbacks) -> None:
        self.user_callbacks = user_callbacks
        self._asked = False

    def on_fit_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._hear(trainer)

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._hear(trainer)
        self._decide(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        self._hear(trainer)
        if batch.closes_step:
            self._decide(trainer, module)

    def _hear(self, trainer: L.Trainer) -> None:
        self._asked, trainer.should_stop = self._asked or trainer.should_stop, False

    def _decide(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.user_callbacks.hear(self._asked, module)
        trainer.should_stop = self.user_callbacks.ended is not None or module.step >= module.total_steps


class Checkpoints(L.Callback):
    """Saves before the first step, every `every` steps, at the end, and when something goes wrong.

    Training waits for a copy of the weights in memory, not for the disk. Between two steps only gradients change, so
    what is saved in the middle of a step is the end of the step before: its rows are read again.
    """

    def __init__(self, *, folder: Path, every: int, fingerprint: Mapping[str, Any], user_callbacks: UserCallbacks,
                 tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.every = every
        self.fingerprint = fingerprint
        self.user_callbacks = user_callbacks
        self.tell = tell
        self._saver: Saver | None = None
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Sweeps what a killed save left. A trial save shows before the first step that the disk takes it."""
        group = shared_group() if module.sharded else None
        agreed(lambda: sweep(self.folder) if module.global_rank == 0 else None)
        self._saver = Saver(self.folder, group=group, tell=self.tell)
        self._saved = module.step if is_committed(checkpoint_path(self.folder, module.step)) else -1
        self.save(trainer, module)
        self._saver.finish()

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and module.guard.rolls_back:
            self._roll_back(trainer, module)
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
            self._save_last(trainer, module, self._saver)
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
                                                "fingerprint": dict(self.fingerprint),
                                                "callbacks": self.user_callbacks.state(trainer)})

    def _save_last(self, trainer: L.Trainer, module: AuroraModule, saver: Saver) -> None:
        stopped = f"stopped after step {module.step}"
        try:
            self.save(trainer, module)
            saver.finish()
        except AuroraError as error:
            self.tell(f"{stopped}, which is not saved ({error}); the same command goes on at the last checkpoint")
        else:
            self.tell(f"{stopped}, which is saved; the same command goes on there")

    def _roll_back(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Takes weights and optimizer of the newest checkpoint. Steps and rows go on: those since then are given up."""
        assert self._saver is not None
        self._saver.wait()
        barrier()
        there = newest_checkpoint(self.folder, self.tell) if module.global_rank == 0 else None
        there = checkpoint_at(self.folder, from_first_rank(0 if there is None else there.step))
        module.take_weights(there)
        self.tell(f"step {module.step} was a spike: the weights are those after step {there.step} again")
        # a run that is stopped now goes on with these weights, and not with the rows that led to the spike
        self.save(trainer, module)
