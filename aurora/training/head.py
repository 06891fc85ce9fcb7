"""What is printed before a stage starts, so that a wrong start is seen before it costs anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from aurora.assemble import WEIGHTED_SLOTS, count_parameters
from aurora.mixture import Mixture
from aurora.model import AuroraModel
from aurora.training.folder import base_paths
from aurora.training.recipe import Recipe
from aurora.weights.adapters import describe_adapters

NAMED = 6


def describe_stage(console: Console, *, stage: str, recipe: Recipe, config: Mapping[str, Any], model: AuroraModel,
                   samples: int | None, fill: tuple[float, float] | None, steps: int, done: int, start: str | None
                   ) -> None:
    """Prints what is trained, from where, on what and how; `fill` are shares of the rows' tokens and frames."""
    held_out = recipe.validation
    totals, learned = count_parameters(model), count_parameters(model, learned=True)
    parameters = "  ".join(f"{slot} {_short(learned[slot])}/{_short(totals[slot])}" for slot in WEIGHTED_SLOTS)
    behind = f"; going on after step {done:,}" if done else ""
    lines = {
        "trains": f"{', '.join([*recipe.trained, *describe_adapters(model, recipe.adapters)])} "
                  f"(parameters trained/total: {parameters})",
        "weights": weight_sources(config, start),
        "data": f"{_datasets(recipe.mixture)}, {recipe.epochs} epoch(s)"
                + ("" if samples is None else f", {samples:,} samples"),
        "steps": f"{steps:,}, each of about {recipe.global_batch:,} "
                 f"{config['data'].get('batch_unit', 'samples')}{behind}",
        "rows": None if fill is None else f"{fill[0]:.1%} of their tokens and {fill[1]:.1%} of their frames are taken",
        "checks": None if held_out is None else "loss on "
                  f"{_datasets(held_out.mixture)}, every {held_out.every:,} steps",
        "rate": f"{recipe.peak_lr:.2e} at its peak",
        "keeps": f"{recipe.keep_ratio:.0%} of the patches",
    }
    console.print(stage)
    for key, value in lines.items():
        if value is not None:
            console.print(f"  {key:8}{value}")


def _datasets(mixture: Mixture) -> str:
    """Their names, as far as they fit into a line."""
    told = [name if part.repeats == 1 else f"{name} ×{part.repeats}" for name, part in mixture.datasets.items()]
    return ", ".join(told) if len(told) <= NAMED else f"{', '.join(told[:NAMED])} and {len(told) - NAMED} more"


def weight_sources(config: Mapping[str, Any], start: str | None) -> str:
    """Where the weights of a stage come from."""
    if start is not None:
        return start
    return ", ".join(f"{slot}: {path or 'random'}" for slot, path in base_paths(config).items())


def _short(count: int) -> str:
    """1234 → 1.2k: three units are enough for parameters."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.2f}{name}"
    return str(count)
