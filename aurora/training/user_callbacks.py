"""The callbacks that a config names in `trainer.callbacks`: Lightning's own, and those of installed packages."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from aurora.errors import AuroraError
from aurora.training.instantiate import check_entries, instantiate, resolve
from aurora.training.lost import keep_traceback, says_lost
from aurora.training.module import AuroraModule
from aurora.training.parallel import gather, most_over_ranks
from aurora.training.plain import from_plain, to_plain
from aurora.types import PackedBatch

REFUSED = {
    "Checkpoint": "trainer.checkpoint_every says how often a checkpoint is written, beside training and without pickle",
    "ProgressBar": "trainer.progress says what is shown",
    "ModelSummary": "`aurora info` describes the model",
    "StochasticWeightAveraging": "stages.STAGE.average averages the weights",
    "WeightAveraging": "stages.STAGE.average averages the weights",
    "GradientAccumulationScheduler": "stages.STAGE.global_batch says how many samples a step takes",
    "BatchSizeFinder": "data.row_tokens says how large a row is",
    "LearningRateFinder": "stages.STAGE.peak_lr is the rate",
    "BaseFinetuning": "stages.STAGE.trained says what learns",
    "ModelPruning": "it renames weights, which nothing else could read then",
    "BasePredictionWriter": "training predicts nothing; `aurora eval` does",
    "ThroughputMonitor": "the curve has tokens_per_second, samples_per_second and mfu",
    "SpikeDetection": "trainer.spike is for that",
    "LambdaCallback": "it takes functions, which a config cannot hold; a class of your own package can",
}
"""What would do nothing here, or harm: Lightning's name, and what there is instead."""


def check_callbacks(entries: Mapping[str, Any], *, validated: bool) -> None:
    """AuroraError for a callback that cannot work. `validated` says whether a stage has validation."""
    check_entries("trainer.callbacks", entries, L.Callback)
    for name, entry in entries.items():
        kind = resolve(entry["_target_"])
        for base in kind.__mro__:
            if base.__module__.startswith("lightning.") and base.__name__ in REFUSED:
                raise AuroraError(f"trainer.callbacks.{name}: {kind.__name__} has no use here: "
                                  f"{REFUSED[base.__name__]}")
        for hook in ("on_save_checkpoint", "on_load_checkpoint"):
            if getattr(kind, hook) is not getattr(L.Callback, hook):
                raise AuroraError(f"trainer.callbacks.{name}: {kind.__name__} has {hook}, which is not called: there "
                                  "is no checkpoint of Lightning's. What it has to keep, state_dict gives and "
                                  "load_state_dict takes")
        if issubclass(kind, EarlyStopping) and not validated:
            raise AuroraError(f"trainer.callbacks.{name}: {kind.__name__} acts after each validation, and no stage "
                              "has any; stages.STAGE.validation.mixture says what is held out")


class UserCallbacks(L.Callback):
    """Gives the callbacks of a stage their state back, tells them of validations, and hears what they ask for.

    It stands before them in the trainer's list.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        """`entries` is `trainer.callbacks`."""
        self.callbacks: dict[str, L.Callback] = {name: _built(name, entry) for name, entry in entries.items()}
        self.ended: str | None = None  # the stage, before its last step: who asked for that, and why
        self._validated = -1  # the last step of whose validation they were told

    def on_fit_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        if not self.callbacks:
            return
        resume = module.resume
        kept = gather({} if resume is None else resume.state.get("callbacks", {}))[0]
        self.ended, self._validated = kept.get("ended"), kept.get("validated", -1)
        for name, state in kept.get("states", {}).items():
            if name in self.callbacks:
                self.callbacks[name].load_state_dict(from_plain(state))
        trainer.callback_metrics.update(from_plain(kept.get("metrics", {})))

    def on_train_batch_start(self, trainer: L.Trainer, module: AuroraModule, batch: PackedBatch, batch_idx: int
                             ) -> None:
        self._count_steps(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        self._count_steps(trainer, module)

    def _count_steps(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """What they log belongs to the last step that was taken; Lightning would count rows."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = module.step

    def state(self, trainer: L.Trainer) -> dict[str, Any]:
        """What a checkpoint holds of them, in plain values. AuroraError names the callback where that cannot be."""
        if not self.callbacks:
            return {}
        states = {name: to_plain(f"trainer.callbacks.{name}: what state_dict of {type(callback).__name__} gives",
                                 callback.state_dict())
                  for name, callback in self.callbacks.items()}
        metrics = to_plain("trainer.callback_metrics", dict(trainer.callback_metrics))
        return {"ended": self.ended, "validated": self._validated, "metrics": metrics,
                "states": {name: state for name, state in states.items() if state}}

    def waiting(self) -> list[str]:
        """The names of those that look at nothing but validations."""
        return [name for name, callback in self.callbacks.items() if isinstance(callback, EarlyStopping)]

    def validated(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Tells them that a validation has ended, once for every step. Collective."""
        if module.step == self._validated:
            return
        # the last step stops as well, which is nothing that they asked for
        self._validated, stopping, trainer.should_stop = module.step, trainer.should_stop, False
        for callback in self.callbacks.values():
            callback.on_validation_end(trainer, module)
        self.hear(trainer.should_stop, module)
        trainer.should_stop = stopping or self.ended is not None

    def hear(self, asked: bool, module: AuroraModule) -> None:
        """Whether one of them asked any rank to stop, between two steps. Collective."""
        if self.callbacks and most_over_ranks(int(asked), module.device) and self.ended is None:
            why = [getattr(callback, "stopping_reason_message", None) for callback in self.callbacks.values()]
            self.ended = ": ".join([f"trainer.callbacks ({', '.join(self.callbacks)})", *filter(None, why)])

    @contextmanager
    def named(self, folder: Path, step: Callable[[], int]) -> Iterator[None]:
        """Raises AuroraError with the name of the callback when one fails in the block; `folder` gets the traceback."""
        try:
            yield
        except Exception as error:
            name = self._owner(error)
            if name is None or isinstance(error, AuroraError) or says_lost(error):
                raise
            said = " ".join(str(error).split())
            raise AuroraError(f"trainer.callbacks.{name} failed after step {step()}: {type(error).__name__}: {said}; "
                              f"{keep_traceback(folder, error)}") from error

    def _owner(self, error: BaseException) -> str | None:
        """The callback that an error came through."""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for name, callback in self.callbacks.items():
                if frame.f_locals.get("self") is callback:
                    return name
        return None


def _built(name: str, entry: Mapping[str, Any]) -> L.Callback:
    try:
        callback: L.Callback = instantiate(entry)
    # whatever a constructor objects to is an option that somebody gave
    except Exception as error:
        raise AuroraError(f"trainer.callbacks.{name}: {' '.join(str(error).split())}") from error
    return callback
