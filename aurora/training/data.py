"""How the data module of a stage is built, and what it is asked beyond its contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.registry import DATA, PROMPT, READER
from aurora.training.recipe import Recipe

QUARANTINE_FILE = "bad_samples.jsonl"


def build_data(config: Mapping[str, Any], recipe: Recipe, model: AuroraModel, folder: Path) -> DataModule:
    """The rows of a stage. What the recipe and other parts know is handed over unless `config["data"]` says it."""
    options = {key: value for key, value in config["data"].items() if value is not None}
    facts = {
        "layout": model.layout(recipe.keep_ratio),
        "tokenizer": model.tokenizer,
        "prompt": model.prompt if recipe.prompt is None else PROMPT.build(recipe.prompt),
        "reader": READER.build(config["reader"]),
        "mixture": recipe.mixture,
        "epochs": recipe.epochs,
        "max_steps": recipe.max_steps,
        "global_batch": recipe.global_batch,
        "seed": config["seed"],
        "quarantine": str(folder / QUARANTINE_FILE),
    }
    return DATA.build(options, **{key: fact for key, fact in facts.items() if key not in options})


def build_held_out(config: Mapping[str, Any], recipe: Recipe, model: AuroraModel, folder: Path
                   ) -> dict[str, DataModule]:
    """The rows that a stage is validated on, by dataset; what is written of each goes below `folder`. AuroraError names
    the dataset that cannot be read."""
    if recipe.validation is None:
        return {}
    kind = config["data"]["name"]
    if "mixture" not in DATA.options(kind):
        raise AuroraError(f"validation: data {kind!r} takes no mixture, so it cannot read what is held out; "
                          "stages.STAGE.validation.mixture=null trains without")
    once = held_out(recipe)
    return {name: _checked(name, replace(once, mixture=once.mixture.only([name])), config, model, folder / name)
            for name in _there(config["data"], list(once.mixture.datasets))}


def _there(data: Mapping[str, Any], names: list[str]) -> list[str]:
    """The datasets that are not to be dropped because they are missing."""
    root = data.get("root")
    if data.get("missing") != "drop" or root is None or "://" in str(root):
        return names
    found = [name for name in names if (Path(root) / name).is_dir()]
    if not found:
        raise AuroraError(f"validation: none of {', '.join(names)} is below data.root {root}; "
                          "stages.STAGE.validation.mixture=null trains without one")
    return found


def held_out(recipe: Recipe) -> Recipe:
    """What one validation reads, as if it were learned from."""
    assert recipe.validation is not None
    return replace(recipe, mixture=recipe.validation.mixture, epochs=1, max_steps=recipe.validation.max_steps)


def _checked(name: str, recipe: Recipe, config: Mapping[str, Any], model: AuroraModel, folder: Path) -> DataModule:
    try:
        data = build_data(config, recipe, model, folder)
        data.total_steps()
    except AuroraError as error:
        raise AuroraError(f"validation on {name}: {error}") from error
    return data


def count_samples(data: DataModule, recipe: Recipe) -> int | None:
    """Samples of the whole stage, when the data module has a plan that says so."""
    plan = getattr(data, "plan", None)
    return None if plan is None else int(plan.samples) * recipe.epochs


def row_fill(data: DataModule) -> tuple[float, float] | None:
    """Shares of rows' tokens and frames that samples take, when the data module has a plan that says so."""
    plan = getattr(data, "plan", None)
    return None if plan is None else (plan.fill().tokens, plan.fill().frames)


def data_metrics(data: Any) -> dict[str, float]:
    """What the data module counts of its own, on this rank: samples that could not be read, workers that died."""
    counts = {"bad_samples": count_bad_samples(data), "worker_deaths": getattr(data, "worker_deaths", None)}
    return {name: count for name, count in counts.items() if count is not None}


def count_bad_samples(data: Any) -> int | None:
    """Samples that could not be read so far, on this rank, when the data module counts them."""
    bad = getattr(data, "bad", None)
    return None if bad is None else sum(bad.reasons.values())
