"""What `aurora train` adds to a bare loop: the same steps of the same model, one of them with everything around it.

Training runs in a thread that takes one step each time it is asked to, so that the two can be timed in turns.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, tensor

from aurora.assemble import WEIGHTED_SLOTS
from aurora.bench.case import Settings
from aurora.bench.timing import Work
from aurora.config import ModelConfig
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.registry import DATA
from aurora.training.module import AuroraModule
from aurora.training.run import train
from aurora.types import PackedBatch
from aurora.weights.model_folder import save_model

CHECKPOINT_EVERY = 10
NAME = "bench_turns"


class Turns(L.LightningDataModule, DataModule):  # type: ignore[misc]
    """Gives the same row whenever it is asked to."""

    batch: PackedBatch
    asked = threading.Semaphore(0)
    ready = threading.Semaphore(0)
    module: AuroraModule
    error: BaseException | None = None  # that ended the training

    def __init__(self) -> None:
        super().__init__()

    def steps_per_epoch(self) -> int:
        return 10**6

    def total_steps(self) -> int:
        return self.steps_per_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """There is nothing to go on from."""

    def train_dataloader(self) -> Turns:
        assert self.trainer is not None
        Turns.module = self.trainer.lightning_module
        return self

    def __iter__(self) -> Iterator[PackedBatch]:
        while True:
            Turns.ready.release()  # the step before has ended, with all that follows it
            Turns.asked.acquire()
            yield self.batch


def trained(settings: Settings, model: AuroraModel, config: Mapping[str, Any], batch: PackedBatch) -> Work:
    """One step of `aurora train` from these weights; gives its loss and the norm of each slot's gradient."""
    folder = settings.folder / "overhead"
    save_model(model, ModelConfig.parse(config), folder / "start")
    if NAME not in DATA.known():
        DATA.add(NAME, Turns)
    Turns.batch = batch
    with contextlib.redirect_stdout(io.StringIO()):
        threading.Thread(target=_train, args=(_config(settings, config, folder),), daemon=True).start()
        # Lightning asks for a row before it learns from the one that it was given
        _wait()
        _turn()
    return _work


def _work() -> list[Tensor]:
    _turn()
    report = Turns.module.report
    assert report is not None
    norms = Turns.module.measured
    return [tensor(report.loss), *(tensor(norms[f"grad_norm_{slot}"]) for slot in WEIGHTED_SLOTS)]


def _turn() -> None:
    Turns.asked.release()
    _wait()


def _wait() -> None:
    Turns.ready.acquire()
    if Turns.error is not None:
        raise Turns.error


def _train(config: Mapping[str, Any]) -> None:
    try:
        train(config)
    except BaseException as error:
        Turns.error = error
    Turns.ready.release()


def _config(settings: Settings, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    stage = {"after": None, "trained": [*WEIGHTED_SLOTS], "mixture": {"random": 1}, "prompt": None, "keep_ratio": 0.1,
             "peak_lr": 1e-5, "global_batch": 1, "epochs": 1}
    precision = "32-true" if config["dtype"] == "float32" else "bf16-true"
    return {**config, "reader": {"name": "pyav"}, "data": {"name": NAME}, "stages": {"only": stage}, "stage": "only",
            "run": str(folder / "run"), "init_from": str(folder / "start"), "restart": True, "seed": 0,
            "keep_ratio": 0.1, "sampling": {"fps": 1.0}, "base_weights": {},
            "trainer": {"accelerator": "gpu" if settings.gpu else "cpu", "progress": "none", "precision": precision,
                        # the thread waits between turns for as long as the others are timed, and ends with the process
                        "checkpoint_every": CHECKPOINT_EVERY, "watchdog_seconds": None},
            "logger": {"csv": {"_target_": "aurora.training.logs.CsvLogger"}}}
