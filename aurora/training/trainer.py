"""Lightning's trainer as stages use it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from aurora.errors import AuroraError
from aurora.training.launch import Place, cluster
from aurora.training.precision import precision
from aurora.training.recipe import TrainerOptions
from aurora.training.sharding import build_strategy


def build_trainer(options: TrainerOptions, place: Place | None, *, callbacks: list[L.Callback], loggers: list[Any],
                  folder: Path) -> L.Trainer:
    """A Lightning trainer that runs one pass over rows and leaves saving, logging and display to our callbacks."""
    try:
        return _trainer(options, place, callbacks, loggers, folder)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise AuroraError(f"trainer: {error}") from error


def _trainer(options: TrainerOptions, place: Place | None, callbacks: list[L.Callback], loggers: list[Any],
             folder: Path) -> L.Trainer:
    nodes = 1 if place is None else place.nodes
    dtypes = precision(options)
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=nodes,
        strategy=build_strategy(options, nodes),
        plugins=[cluster(place), *dtypes.pop("plugins", [])],
        **dtypes,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(folder),
        max_epochs=1,
        limit_val_batches=0,
        # not at the end of an epoch, of which a stage has one: so EarlyStopping looks after our validations
        check_val_every_n_epoch=None,
        val_check_interval=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's hints about hardware and loaders out of what users read; its errors stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # lightning 2.6 on torch 2.13, about its own code
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        # FSDP2 warns of views that are then written into; nothing writes into what a block returns
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view", category=UserWarning)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
