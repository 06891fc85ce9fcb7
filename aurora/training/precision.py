"""Half precision without a conversion: a model is built in its dtypes, and keeps them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.precision import HalfPrecision
from torch import nn

from aurora.training.recipe import TrainerOptions


class AsBuilt(HalfPrecision):
    """Lightning's half precision would cast every parameter; adapters stay float32 beside bfloat16 weights."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module


def precision(options: TrainerOptions) -> dict[str, Any]:
    """What the trainer is told about precision."""
    if options.precision == "bf16-true":
        return {"plugins": [AsBuilt("bf16-true")]}
    if options.precision == "bf16-gathered":
        return {"precision": "32-true"}  # FSDP2 makes bfloat16 of what it gathers
    return {"precision": options.precision}
