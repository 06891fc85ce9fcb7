"""Saves a run: before the first step, every so many steps, at the end, and when something goes wrong."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback

from aurora.errors import AuroraError
from aurora.steps import Step, StepLoader
from aurora.training.callbacks.preemption import Preemption
from aurora.training.checkpoint.layout import (
    KEPT_CHECKPOINTS,
    by_age,
    checkpoint_path,
    is_committed,
    newest_checkpoint,
    read_checkpoint,
    sweep,
)
from aurora.training.checkpoint.state import all_finite
from aurora.training.distributed.collectives import on_rank_zero, sum_over_ranks
from aurora.training.distributed.strategies import is_sharded
from aurora.training.module import AuroraModule, StepInterrupted


class RunCheckpoint(CheckpointCallback):
    """Saves `folder`/step-N between two steps, after the metrics of step N were logged and its validation ran.

    Training waits for a copy of the weights in memory, not for the disk. What is saved after an error inside of a step
    is the end of the step before: its rows are read again. The last two checkpoints are kept.
    """

    def __init__(self, *, folder: Path, every: int, preemption: Preemption, report: Callable[[str], None]) -> None:
        self.folder, self.every, self.preemption, self.report = folder, every, preemption, report
        self.ended = False  # by a callback that set `trainer.should_stop`, before the last step
        self.validated = 0  # the last step that was validated
        self._saved = -1
        self._due = False  # a checkpoint, whatever the step
        self._started = False

    # not as the callback's state, which Lightning would miss in a trainer without this callback

    def on_save_checkpoint(self, trainer: L.Trainer, module: AuroraModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {"ended": self.ended, "validated": self.validated}

    def on_load_checkpoint(self, trainer: L.Trainer, module: AuroraModule, checkpoint: dict[str, Any]) -> None:
        run = checkpoint.get("run", {})
        self.ended, self.validated = run.get("ended", False), run.get("validated", 0)

    def on_validation_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.validated = trainer.global_step

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Removes what a killed save left. A trial save shows before the first step that the disk takes it."""
        on_rank_zero(partial(sweep, self.folder))
        self._started = True
        step = trainer.global_step
        self._saved = step if is_committed(checkpoint_path(self.folder, step)) else -1
        self.save(trainer, module)
        module.checkpoint_io.finish()
        if self.ended:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: L.Trainer, module: AuroraModule, batch: Step, batch_idx: int) -> None:
        if self._due or trainer.global_step % self.every == 0:
            self.save(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: Step,
                           batch_idx: int) -> None:
        if module.guard.rolls_back:
            self._roll_back(trainer, module)
        # Lightning validates before it stops: so the last step is validated, whatever `validation.every` is
        trainer.should_stop = trainer.should_stop or trainer.global_step >= trainer.max_steps

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self.ended = self.ended or (self.preemption.stopped is None and trainer.global_step < trainer.max_steps)
        self.save(trainer, module, again=self.ended)
        module.checkpoint_io.finish()

    def on_exception(self, trainer: L.Trainer, module: AuroraModule, exception: BaseException) -> None:
        if not self._started:
            return
        module.leave_validation()
        # every rank writes its own shards, and the others may be anywhere when one fails, but not when all were stopped
        together = isinstance(exception, StepInterrupted) or not is_sharded(trainer.strategy)
        if together and self._consistent(trainer, module):
            if self.preemption.logged < trainer.global_step:  # what is saved has its line in the curve
                for logger in trainer.loggers:
                    logger.log_metrics({name: float(value) for name, value in module.metrics.items()},
                                       trainer.global_step)
            self._save_last(trainer, module, quiet=isinstance(exception, StepInterrupted))
        module.checkpoint_io.wait()

    def save(self, trainer: L.Trainer, module: AuroraModule, *, again: bool = False) -> None:
        """Begins to write the state after the last step, unless that was done. Collective when sharded."""
        step = trainer.global_step
        if step == self._saved and not again:
            return
        self._saved, self._due = step, False
        self._require_finite(trainer, module)
        path = checkpoint_path(self.folder, step)
        trainer.save_checkpoint(path)
        # the one before is whole by now; the rest goes once this one is
        for old in [older for older in by_age(self.folder) if older != path][KEPT_CHECKPOINTS - 1 :]:
            trainer.strategy.remove_checkpoint(old)

    def _require_finite(self, trainer: L.Trainer, module: AuroraModule) -> None:
        sharded = is_sharded(trainer.strategy)
        bad = float(not all_finite(module.named_tensors())) if sharded or module.global_rank == 0 else 0.0
        if (sum_over_ranks([bad], module.device)[0] if sharded else bad) > 0:
            raise AuroraError(f"the weights after step {trainer.global_step} are not finite and were not saved; the "
                              f"last good checkpoint is in {self.folder}")

    def _consistent(self, trainer: L.Trainer, module: AuroraModule) -> bool:
        """Whether weights, optimizer and data position are those of one step."""
        loader = trainer.train_dataloader
        in_step = not isinstance(loader, StepLoader) or loader.taken == trainer.global_step
        # sharded weights are looked at by all ranks together when they are saved
        return module.consistent and in_step and (is_sharded(trainer.strategy) or all_finite(module.named_tensors()))

    def _save_last(self, trainer: L.Trainer, module: AuroraModule, *, quiet: bool) -> None:
        step = f"stopped after step {trainer.global_step}"
        try:
            self.save(trainer, module)
            module.checkpoint_io.finish()
        except AuroraError as error:
            self.report(f"{step}, which is not saved ({error}); the same command resumes from the last checkpoint")
        else:
            if not quiet:
                self.report(f"{step}, which is saved; the same command resumes there")

    def _roll_back(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Takes weights and optimizer of the newest checkpoint. Steps and rows go on: those since then are given up."""
        module.checkpoint_io.wait()
        trainer.strategy.barrier()
        newest = newest_checkpoint(self.folder, self.report) if module.global_rank == 0 else None
        path: Path | None = trainer.strategy.broadcast(None if newest is None else newest.path)
        if path is None:
            raise AuroraError(f"there is no checkpoint in {self.folder} to roll back to")
        checkpoint = read_checkpoint(path)
        module.restore(checkpoint)
        self.report(f"step {trainer.global_step} was a spike: rolled back to the weights after step {checkpoint.step}")
        # a run that is stopped after this step goes on with these weights, and not with the rows that led to the spike
        self._due = True
