"""One stage in Lightning's trainer, with all that is hung onto it, and how it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from aurora.errors import AuroraError
from aurora.interfaces import DataModule
from aurora.training.callbacks import Checkpoints, Curves, EndOfStage
from aurora.training.folder import StageFolder
from aurora.training.launch import Place
from aurora.training.logs import build_loggers
from aurora.training.lost import lost_processes_told
from aurora.training.module import AuroraModule
from aurora.training.parallel import agreed, leave
from aurora.training.progress import ProgressDisplay
from aurora.training.recipe import Recipe, TrainerOptions
from aurora.training.signals import KILLED, StopOnSignal, requeue
from aurora.training.trainer import build_trainer
from aurora.training.user_callbacks import UserCallbacks
from aurora.training.validation import VALIDATION, Validation
from aurora.training.watchdog import STACKS, Watchdog


@dataclass(frozen=True)
class Stage:
    """One stage that is about to be trained."""

    name: str
    config: Mapping[str, Any]
    recipe: Recipe
    options: TrainerOptions
    folder: StageFolder
    start: str | None  # the model folder that it starts from; None: base weights
    place: Place | None  # among the processes that a launcher has started


def fit(stage: Stage, module: AuroraModule, data: DataModule, held_out: Mapping[str, DataModule],
        now: Mapping[str, Any], console: Console) -> None:
    """Trains to the end of the stage, from where the module resumes; `now` is its fingerprint.

    Ends the process when a signal asked for that. AuroraError when the rows did not last, or a callback failed;
    LostProcess.
    """
    done = 0 if module.resume is None else module.resume.step
    stop = StopOnSignal()
    watchdog = Watchdog(folder=stage.folder.path / STACKS, seconds=stage.options.watchdog_seconds)
    curves, user_callbacks = Curves(tell=console.print), agreed(lambda: UserCallbacks(stage.options.callbacks))
    for name in user_callbacks.waiting() if stage.recipe.validation is None else ():
        console.print(f"{stage.name}: trainer.callbacks.{name} acts after each validation, and this stage has none")
    validation = [] if stage.recipe.validation is None else [Validation(
        held_out=stage.recipe.validation, data=held_out, folder=stage.folder.path / VALIDATION, curves=curves,
        user_callbacks=user_callbacks, stop=stop, watchdog=watchdog, console=console)]
    callbacks = [
        watchdog,
        # before what may fail when a process is lost: a step that is saved then stands in the curve
        curves,
        user_callbacks,
        *user_callbacks.callbacks.values(),
        EndOfStage(user_callbacks=user_callbacks),
        stop,
        Checkpoints(folder=stage.folder.checkpoints, every=stage.options.checkpoint_every, fingerprint=now,
                    user_callbacks=user_callbacks, tell=console.print),
        *validation,
        ProgressDisplay(stage=stage.name, display=stage.options.progress, seconds=stage.options.progress_seconds,
                        console=console),
    ]
    loggers = agreed(lambda: build_loggers(stage.config["logger"] or {}, stage.folder.path, done))
    trainer = build_trainer(stage.options, stage.place, callbacks=callbacks, loggers=loggers, folder=stage.folder.path)
    with watchdog.watching(), _errors_told(stage, module, user_callbacks):
        trainer.fit(module, datamodule=data)
    if module.step < module.total_steps or stop.stopped is not None:
        _end_early(stage, module, stop, user_callbacks.ended, console)


def _end_early(stage: Stage, module: AuroraModule, stop: StopOnSignal, ended: str | None, console: Console) -> None:
    """`ended` says which callback asked for that, if one did."""
    if stop.stopped is not None:
        console.print(f"{stage.name}: stopped by {stop.stopped.name} after step {module.step}, which is saved; "
                      "the same command goes on there")
        if stop.stopped == signal.SIGUSR1 and module.global_rank == 0:
            requeue(console.print)
        # a launcher that sees one end kills the others, which may still be writing; and a process that ends inside of
        # its groups aborts now and then, with another status
        leave()
        sys.exit(KILLED + stop.stopped)
    if ended is not None:
        console.print(f"{stage.name}: ended after step {module.step} of {module.total_steps} by {ended}")
        return
    raise AuroraError(f"stage {stage.name!r}: the data ended after step {module.step} of {module.total_steps}")


@contextmanager
def _errors_told(stage: Stage, module: AuroraModule, user_callbacks: UserCallbacks) -> Iterator[None]:
    """In one line what the user's callbacks and lost processes are to blame for."""
    folder = stage.folder.path / STACKS
    with lost_processes_told(folder, step=lambda: module.step), user_callbacks.named(folder, step=lambda: module.step):
        yield
