"""Validation while a stage trains: the loss on rows that are held out, always the same ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from aurora.interfaces import DataModule
from aurora.training.callbacks import Curves
from aurora.training.data import QUARANTINE_FILE
from aurora.training.module import AuroraModule
from aurora.training.parallel import agreed, barrier
from aurora.training.randomness import seed_step
from aurora.training.recipe import HeldOut
from aurora.training.sharding import free_gathered
from aurora.training.signals import StopOnSignal
from aurora.training.tally import Tally
from aurora.training.user_callbacks import UserCallbacks
from aurora.training.watchdog import Watchdog
from aurora.types import PackedBatch

VALIDATION = "validation"  # in that of the stage; below it one for every dataset


class Validation(L.Callback):
    """Every so many steps writes `val_loss`, and that of each dataset where there are several, into the step's line.

    Comes after the callback that saves, so that nothing waits for it: a run that ended in the middle validates the step
    that it goes on from once more. What becomes the model is validated: the average of the weights where there is one.
    """

    def __init__(self, *, held_out: HeldOut, data: Mapping[str, DataModule], folder: Path, curves: Curves,
                 user_callbacks: UserCallbacks, stop: StopOnSignal, watchdog: Watchdog, console: Console) -> None:
        """`data` is by dataset; `folder` holds one for each, with its bad samples."""
        self.held_out, self.data, self.folder = held_out, data, folder
        self.curves, self.user_callbacks = curves, user_callbacks
        self.stop, self.watchdog, self.console = stop, watchdog, console

    def setup(self, trainer: L.Trainer, module: AuroraModule, stage: str) -> None:
        """Does what Lightning does for the rows that are learned from. Collective."""
        held_out: list[Any] = [*self.data.values()]
        for data in held_out:
            data.trainer = trainer  # which knows the rank
        agreed(lambda: [data.prepare_data() for data in held_out] if trainer.local_rank == 0 else None)
        for data in held_out:
            data.setup(stage)

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        if module.step > 0 and self._due(module):
            self.validate(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        if batch.closes_step and self._due(module) and self.stop.stopped is None:
            self.validate(trainer, module)

    def validate(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Reads all that is held out, unless a signal comes meanwhile. Collective."""
        begun, tallies = time.perf_counter(), {}
        with _nothing_learned(trainer, module):
            for name, data in self.data.items():
                tallies[name] = self._read(self._rows(name, data, trainer), trainer, module)
                if self.stop.stopped is not None:
                    return
        metrics = _metrics({name: tally.over_ranks(module.device) for name, tally in tallies.items()})
        self.curves.write(trainer, metrics, module.step)
        self.console.print(f"{module.stage} {module.step}/{module.total_steps}  val_loss {metrics['val_loss']:.4f} of "
                           f"{metrics['val_targets']:,.0f} targets in {time.perf_counter() - begun:.1f} s")
        self.user_callbacks.validated(trainer, module)

    def _due(self, module: AuroraModule) -> bool:
        last = module.step == module.total_steps or self.user_callbacks.ended is not None
        return last or module.step % self.held_out.every == 0

    def _read(self, rows: Iterable[PackedBatch], trainer: L.Trainer, module: AuroraModule) -> Tally:
        tally, steps = Tally(), 0
        for batch in rows:
            for piece, loss in module.losses(trainer.strategy.batch_to_device(batch)):
                tally.add(piece, loss)
            self.watchdog.alive(module)
            steps += batch.closes_step
            if self.stop.look(trainer, module) or steps == self.held_out.max_steps:
                break
        return tally

    def _rows(self, name: str, data: Any, trainer: L.Trainer) -> Iterable[PackedBatch]:
        """The rows of this rank, from the first."""
        if trainer.is_global_zero:
            # or every validation would add the same samples to it
            for listed in (self.folder / name).glob(f"{Path(QUARANTINE_FILE).stem}*"):
                listed.unlink()
        barrier()
        rows: Iterable[PackedBatch] = data.train_dataloader()
        return rows


@contextmanager
def _nothing_learned(trainer: L.Trainer, module: AuroraModule) -> Iterator[None]:
    """Between two steps: what is done in the block leaves the rest of training as it would have been."""
    begun, modes = time.perf_counter(), [(part, part.training) for part in module.net.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if module.average is not None:
            stack.enter_context(module.average.in_place())
        stack.enter_context(trainer.precision_plugin.val_step_context())
        module.net.eval()
        # what merges or sorts at random does so in the same way each time
        seed_step(module.config["seed"], 0, module.global_rank, module.device)
        try:
            yield
        finally:
            free_gathered(module.net)
            for part, mode in modes:
                part.training = mode
    module.go_on(paused=time.perf_counter() - begun)


def _metrics(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """Means per target, over all datasets and of each where there are several."""
    targets = sum(tally.targets for tally in tallies.values())
    losses = {f"val_loss_{name}": _mean(tally.loss, tally.targets) for name, tally in tallies.items()}
    return {"val_loss": _mean(sum(tally.loss for tally in tallies.values()), targets), "val_targets": targets,
            **(losses if len(tallies) > 1 else {})}


def _mean(loss: float, targets: float) -> float:
    return loss / max(1.0, targets)
