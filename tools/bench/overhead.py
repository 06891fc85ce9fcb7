"""What `aurora train` adds to a bare loop: the same steps of the same model, one of them with everything around it.

Training runs in a thread that takes one step each time it is asked to, so that the two can be timed in turns. It ends
when the bench drops it.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from aurora.config import Config, ModelConfig
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.registry import DATA, WEIGHTED_SLOTS
from aurora.training.run import train
from aurora.types import PackedBatch, Position
from aurora.weights.model_folder import save_model
from tools.bench.case import Settings

CHECKPOINT_EVERY = 10
NAME = "bench_turns"
STEPS = 10**6


class Ended(Exception):
    """The bench needs no further step."""


class Turns(threading.Thread):
    """A training whose every step waits until it is asked for."""

    def __init__(self, batch: PackedBatch, config: Config) -> None:
        super().__init__(daemon=True)
        self.batch, self.config = batch, config
        self.asked, self.ready = threading.Semaphore(0), threading.Semaphore(0)
        self.data: OneRow | None = None
        self.error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        try:
            train(self.config)
        except BaseException as error:
            self.error = error
        self.ready.release()

    def rows(self) -> Iterator[PackedBatch]:
        """The same row whenever a step is asked for."""
        while True:
            self.ready.release()  # the step before has ended, with all that follows it
            self.asked.acquire()
            if self.ended:
                raise Ended
            yield self.batch

    def wait(self) -> None:
        """Returns when the training waits to be asked for its next step."""
        self.ready.acquire()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Ends the training and waits for it."""
        self.ended = True
        self.asked.release()
        self.join()


class OneRow(DataModule, L.LightningDataModule):  # type: ignore[misc]
    """Gives a training in turns its rows."""

    turns: Turns  # the one that was started last

    def __init__(self) -> None:
        super().__init__()
        OneRow.turns.data = self

    @property
    def epochs(self) -> int:
        return 1

    def steps_per_epoch(self) -> int:
        return STEPS

    def total_steps(self) -> int:
        return STEPS

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        return OneRow.turns.rows()


class Trained:
    """One step of `aurora train` per call; gives its loss and the norm of each slot's gradient."""

    def __init__(self, settings: Settings, model: AuroraModel, config: Mapping[str, Any], batch: PackedBatch) -> None:
        folder = settings.folder / "overhead"
        save_model(model, ModelConfig.parse(config), folder / "start")
        if NAME not in DATA.known():
            DATA.add(NAME, OneRow)
        self.turns = OneRow.turns = Turns(batch, Config.parse(_config(settings, config, folder)))
        with contextlib.redirect_stdout(io.StringIO()):
            self.turns.start()
            self.turns.wait()

    def __call__(self) -> list[Tensor]:
        self.turns.asked.release()
        self.turns.wait()
        assert self.turns.data is not None
        metrics = self.turns.data.trainer.callback_metrics
        return [metrics["loss"].clone(), *(metrics[f"grad_norm_{slot}"].clone() for slot in WEIGHTED_SLOTS)]

    def __del__(self) -> None:
        if hasattr(self, "turns"):
            self.turns.end()


def _config(settings: Settings, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    stage = {"after": None, "trained": [*WEIGHTED_SLOTS], "mixture": {"random": 1}, "prompt": None, "keep_ratio": 0.1,
             "peak_lr": 1e-5, "global_batch": 1, "epochs": 1}
    precision = "32-true" if config["dtype"] == "float32" else "bf16-true"
    return {**config, "reader": {"name": "pyav"}, "data": {"name": NAME}, "stages": {"only": stage}, "stage": "only",
            "run": str(folder / "run"), "init_from": str(folder / "start"), "restart": True, "seed": 0,
            "keep_ratio": 0.1, "sampling": {"fps": 1.0}, "base_weights": {},
            "trainer": {"accelerator": "gpu" if settings.gpu else "cpu", "progress": "none", "precision": precision,
                        # the thread waits between turns for as long as the others are timed
                        "checkpoint_every": CHECKPOINT_EVERY, "watchdog_seconds": None},
            "logger": {"csv": {"_target_": "aurora.training.callbacks.csv_logger.CsvLogger"}}}
