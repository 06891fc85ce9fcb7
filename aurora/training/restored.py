"""The model that a training checkpoint stands for, without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.checkpoints import Checkpoint, checkpoint_at, is_committed, problem
from aurora.training.recipe import read_recipe
from aurora.training.start import starting_model
from aurora.training.state import AVERAGE, WEIGHTS
from aurora.weights.adapters import merge_adapters
from aurora.weights.model_folder import CONFIG_FILE


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is RUN/STAGE/checkpoints/step-N."""
    return folder.name.startswith("step-") and is_committed(folder)


def restored_model(folder: Path) -> tuple[AuroraModel, ModelConfig]:
    """The model after the steps of a checkpoint, and its config: with the average of its weights where one was kept,
    its adapters merged.

    AuroraError for a broken checkpoint, and when what the stage started from is not there any more.
    """
    wrong = problem(folder)
    if wrong is not None:
        raise AuroraError(f"{folder} is broken: {wrong}")
    checkpoint = checkpoint_at(folder.parent, int(folder.name.removeprefix("step-")))
    stage = folder.absolute().parent.parent
    config: dict[str, Any] = yaml.safe_load((stage / CONFIG_FILE).read_text(encoding="utf-8"))
    recipe = read_recipe(stage.name, config["stages"][stage.name])
    model = starting_model(config, stage.name, recipe, checkpoint.state["start"])
    _fill(model, checkpoint)
    if recipe.adapters:
        merge_adapters(model)
    return model, ModelConfig.parse(config)


def _fill(model: AuroraModel, checkpoint: Checkpoint) -> None:
    names = checkpoint.names()
    learned = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in names) else WEIGHTS
    if {f"{prefix}{name}" for name in learned} - names:
        raise AuroraError(f"{checkpoint.path} holds other parameters than its stage trains")
    checkpoint.load({f"{prefix}{name}": tensor for name, tensor in learned.items()}, None)
