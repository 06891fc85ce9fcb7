"""Which parameters learn, in which groups, and the AdamW of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW

from aurora.assemble import WEIGHTED_SLOTS
from aurora.training.recipe import Recipe


def freeze_untrained(model: nn.Module, trained: Sequence[str]) -> None:
    """Lets exactly the slots in `trained` learn; the others take no gradient and stay in evaluation mode."""
    model.train()
    for slot in WEIGHTED_SLOTS:
        part = getattr(model, slot)
        part.requires_grad_(slot in trained)
        part.train(slot in trained)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups by slot, each with the `scale` of its rate; vectors and scalars are never decayed."""
    groups = []
    for slot in WEIGHTED_SLOTS:
        learned = [parameter for parameter in getattr(model, slot).parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in learned if _is_matrix(parameter)]
        vectors = [parameter for parameter in learned if not _is_matrix(parameter)]
        for parameters, decay in ((matrices, recipe.weight_decay), (vectors, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "scale": recipe.scale(slot)})
    return groups


def _is_matrix(parameter: nn.Parameter) -> bool:
    # RWKV keeps some vectors as [1, 1, D]
    return sum(side > 1 for side in parameter.shape) > 1


def build_optimizer(model: nn.Module, recipe: Recipe, *, fused: bool) -> AdamW:
    """The recipe's optimizer; the rate of each step is set by `set_rate`."""
    return AdamW(parameter_groups(model, recipe), lr=recipe.peak_lr, betas=recipe.betas, fused=fused)


def set_rate(optimizer: AdamW, rate: float) -> None:
    """Sets every group's rate to `rate` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
