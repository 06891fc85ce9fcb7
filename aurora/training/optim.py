"""Which parameters learn, in which groups, and the AdamW of the recipe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW

from aurora.assemble import WEIGHTED_SLOTS
from aurora.model import AuroraModel
from aurora.training.recipe import Recipe
from aurora.weights.adapters import is_state, let_adapters_learn, lr_scale


def choose_learned(model: AuroraModel, recipe: Recipe) -> None:
    """Lets exactly the slots and the adapters of the recipe learn."""
    freeze_untrained(model, recipe.trained)
    let_adapters_learn(model, recipe.adapters)


def freeze_untrained(model: nn.Module, trained: Sequence[str]) -> None:
    """Lets exactly the slots in `trained` learn; the others take no gradient and stay in evaluation mode."""
    model.train()
    for slot in WEIGHTED_SLOTS:
        part = getattr(model, slot)
        part.requires_grad_(slot in trained)
        part.train(slot in trained)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups by rate and decay, each with the `scale` of its rate; vectors, scalars and initial states are never
    decayed."""
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = defaultdict(list)
    for slot in WEIGHTED_SLOTS:
        for name, parameter in getattr(model, slot).named_parameters():
            if parameter.requires_grad:
                scale = lr_scale(recipe.adapters, slot, name, recipe.scale(slot))
                decay = recipe.decay(slot) if _is_matrix(parameter) and not is_state(name) else 0.0
                groups[slot, scale, decay].append(parameter)
    return [{"params": parameters, "weight_decay": decay, "scale": scale}
            for (_, scale, decay), parameters in groups.items()]


def _is_matrix(parameter: nn.Parameter) -> bool:
    # RWKV keeps some vectors as [1, 1, D]
    return sum(side > 1 for side in parameter.shape) > 1


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe, *, fused: bool) -> AdamW:
    """The recipe's optimizer of `parameter_groups`; the rate of each step is set by `set_rate`."""
    return AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, fused=fused)


def set_rate(optimizer: AdamW, rate: float) -> None:
    """Sets every group's rate to `rate` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
