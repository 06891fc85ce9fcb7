"""Recipes and trainer options from plain mappings, until everything in training takes `aurora.config.Config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aurora.config import MOST_SEED as MOST_SEED
from aurora.errors import AuroraError, suggest
from aurora.options import check_kind, read_fields
from aurora.recipe import LONGEST_SECONDS as LONGEST_SECONDS
from aurora.recipe import Display as Display
from aurora.recipe import HeldOut as HeldOut
from aurora.recipe import Recipe as Recipe
from aurora.recipe import TrainerOptions as TrainerOptions
from aurora.recipe import in_order


def read_recipe(name: str, entry: Mapping[str, Any]) -> Recipe:
    return read_fields(Recipe, f"stages.{name}", entry)


def read_recipes(config: Mapping[str, Any]) -> dict[str, Recipe]:
    check_kind("stages", config["stages"], Mapping[str, Any])
    return in_order({name: read_recipe(name, entry) for name, entry in config["stages"].items()})


def read_options(entry: Mapping[str, Any]) -> TrainerOptions:
    return read_fields(TrainerOptions, "trainer", entry)


def selected_stages(config: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> list[str]:
    stage = config["stage"]
    if stage != "all" and stage not in recipes:
        raise AuroraError(f"no stage named {stage!r}.{suggest(str(stage), [*recipes, 'all'])}")
    return list(recipes) if stage == "all" else [stage]


def check_rows(config: Mapping[str, Any], options: TrainerOptions) -> None:
    asked = {"backprop_tokens": options.backprop_tokens is not None, "sequence_parallel": options.sequence_parallel > 1}
    key = next((key for key, cuts in asked.items() if cuts), None)
    if key is not None and config["data"].get("too_long") == "split":
        raise AuroraError(f"trainer.{key} cuts rows into segments, which data.too_long=split does already with what "
                          "is longer than data.row_tokens; take one of the two")


def check_seed(seed: int) -> None:
    if not 0 <= seed <= MOST_SEED:
        raise AuroraError(f"seed is {seed!r}; it must be a whole number from 0 to {MOST_SEED:,}")


def check_datasets(config: Mapping[str, Any], stages: Mapping[str, Recipe]) -> None:
    root = config["data"].get("root")
    if root is None or "://" in str(root) or config["data"].get("missing", "refuse") != "refuse":
        return
    missing = sorted({dataset for recipe in stages.values() for dataset in recipe.datasets
                      if not (Path(root) / dataset).is_dir()})
    if missing:
        raise AuroraError(f"{len(missing)} dataset folders are missing below data.root {root}: {', '.join(missing)}")
