"""The model as a stage begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from aurora.assemble import build_model, load_base_weights
from aurora.config import Config, ModelConfig
from aurora.model import AuroraModel
from aurora.training.optim import choose_learned
from aurora.training.recipe import Recipe
from aurora.weights.adapters import attach_adapters
from aurora.weights.model_folder import load_weights


def skeleton(config: Mapping[str, Any], stage: str, recipe: Recipe) -> AuroraModel:
    """The model of a stage as it is trained, without memory."""
    with torch.device("meta"):
        model = build_model(ModelConfig.parse(config))
        attach_adapters(f"stages.{stage}.adapters", model, recipe.adapters)
    choose_learned(model, recipe)
    return model


def starting_model(config: Mapping[str, Any], stage: str, recipe: Recipe, start: str | None) -> AuroraModel:
    """The model that a stage starts from, with its adapters: the one in the folder `start`, or base weights; what has
    neither is random, the same for the same seed."""
    torch.manual_seed(config["seed"])
    model = build_model(ModelConfig.parse(config))
    if start is None:
        load_base_weights(model, Config.parse(config))
    else:
        load_weights(model, start, ModelConfig.parse(config))
    attach_adapters(f"stages.{stage}.adapters", model, recipe.adapters)
    choose_learned(model, recipe)
    return model
