"""Nothing that training starts or sets survives it, whichever way it ends."""

import faulthandler
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

import aurora
from aurora.config import Config
from aurora.errors import AuroraError
from aurora.training.run import train
from tools.tiny_shards import write_shards
from tools.tiny_training import MadeRows, tiny_config

LOGGERS = {"csv": {"_target_": "aurora.training.callbacks.csv_logger.CsvLogger"},
           "tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}}


def everything(loggers):
    """What a process has of threads, handlers and settings."""
    gc.collect()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "processes": multiprocessing.active_children(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "timers": [signal.getitimer(kind) for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        **{f"${name}": value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "warnings": list(warnings.filters),
        "logging": [(logger.level, logger.disabled, logger.propagate, [*logger.handlers], [*logger.filters])
                    for logger in loggers],
        "logging disabled": logging.root.manager.disable,
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, faulthandler.is_enabled()),
        "folder": os.getcwd(),
        "cpu threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode(),
                          torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                          torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")),
        "group": dist.is_initialized(),
    }


@pytest.fixture(autouse=True)
def compared():
    """Fails the test in which something is left over."""
    torch.set_num_threads(2)
    loggers = [logging.getLogger(), *(one for one in logging.root.manager.loggerDict.values()
                                      if isinstance(one, logging.Logger))]
    before = everything(loggers)
    yield
    after = everything(loggers)
    left = {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}
    assert not left, "\n".join(f"{key}: {was}\nis {now}" for key, (was, now) in left.items())


def config(run, **trainer):
    tree = tiny_config(run, steps=4) | {"logger": LOGGERS, "stage": "first"}
    tree["trainer"] |= trainer
    return tree


class Fails(L.Callback):
    """Raises when training begins, ends, or saves."""

    def __init__(self, when):
        self.when = when

    def on_train_start(self, *arguments):
        self._fail("begins")

    def on_train_end(self, *arguments):
        self._fail("ends")

    def on_save_checkpoint(self, *arguments):
        self._fail("saves")

    def _fail(self, now):
        if now == self.when:
            raise KeyboardInterrupt if now == "ends" else ValueError("as asked")


def test_of_a_run(tmp_path):
    train(Config.parse(config(tmp_path)))


def test_of_a_run_whose_data_break(tmp_path, monkeypatch):
    monkeypatch.setattr(MadeRows, "breaks_at", 6)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(Config.parse(config(tmp_path)))


def test_of_a_run_that_is_refused(tmp_path):
    with pytest.raises(AuroraError, match="starts from the model of 'first'"):
        train(Config.parse(config(tmp_path) | {"stage": "second"}))


def test_of_a_run_with_workers(tmp_path, sample, config_for):
    write_shards([sample(number) for number in range(9)], tmp_path / "data" / "pictures")
    tree = config_for(tmp_path / "run", tmp_path / "data")
    tree["data"]["workers"] = 2
    train(Config.parse(tree))


def own_trainer(run, **options):
    parsed = Config.parse(config(run))
    trainer = L.Trainer(**{"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False,
                           "enable_model_summary": False, "callbacks": [ModelCheckpoint(run / "saved")]} | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = list(warnings.filters)
        trainer.fit(aurora.training_module(parsed, stage="first"), aurora.data_module(parsed, stage="first"))
        assert warnings.filters == inside


def test_of_a_trainer_of_ones_own(tmp_path):
    own_trainer(tmp_path)


@pytest.mark.parametrize("when", ["begins", "saves"])
def test_of_a_trainer_of_ones_own_that_fails(tmp_path, when):
    with pytest.raises(ValueError, match="as asked"):
        own_trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path / "saved"), Fails(when)])


def test_of_a_trainer_of_ones_own_that_is_interrupted(tmp_path):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        own_trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path / "saved"), Fails("ends")])
