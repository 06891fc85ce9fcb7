"""The dtypes of training: what weights are of, and what Lightning is told."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.plugins.precision import FSDPPrecision, HalfPrecision, Precision
from torch import nn

from aurora.errors import AuroraError
from aurora.training.recipe import TrainerOptions


class AsBuilt(HalfPrecision):
    """Half precision without a conversion: a model is built in its dtypes, and keeps them.

    Lightning's would cast every parameter; adapters stay float32 beside bfloat16 weights.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module


class Float16(Precision):
    """Products in float16 and no more: Lightning would add a scaler of its own, which knows neither rows that add up
    nor skipped steps (`scaler.py` does), and take bfloat16 on CPUs."""

    def __init__(self, device: str) -> None:
        self.device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        return _autocast(self.device)


class FlatFloat16(FSDPPrecision):
    """The same for `FSDPStrategy`, which takes nothing but its own kind."""

    def __init__(self, device: str) -> None:
        super().__init__("32-true")
        self.device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        return _autocast(self.device)


def precision(options: TrainerOptions) -> dict[str, Any]:
    """What the trainer is told about precision."""
    if options.precision == "16-mixed":
        kind = FlatFloat16 if options.strategy == "fsdp1" else Float16
        return {"plugins": [kind(_device_type(options))]}
    if options.precision == "bf16-true":
        return {"plugins": [AsBuilt("bf16-true")]}
    if options.precision == "bf16-gathered":
        return {"precision": "32-true"}  # FSDP2 makes bfloat16 of what it gathers
    return {"precision": options.precision}


def require_bfloat16(options: TrainerOptions) -> None:
    """AuroraError for bfloat16 on a GPU that would only imitate it, slowly."""
    if not options.precision.startswith("bf16") or _device_type(options) != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise AuroraError(f"trainer.precision={options.precision}: {torch.cuda.get_device_name()} has no bfloat16; "
                          "trainer.precision=16-mixed is right for it")


def in_dtype(config: Mapping[str, Any], options: TrainerOptions) -> Mapping[str, Any]:
    """The config with the dtype that the weights have in training. AuroraError where float16 would have nothing wide
    beside it."""
    if options.precision == "16-mixed" and config["dtype"] != "float32":
        raise AuroraError(f"trainer.precision=16-mixed computes in float16 with float32 weights, and dtype is "
                          f"{config['dtype']}; dtype=float32 is right")
    return {**config, "dtype": "bfloat16"} if options.precision == "bf16-true" else config


def _autocast(device: str) -> torch.autocast:
    # what is kept of casts would be whole weights beside those that are sharded
    return torch.autocast(device, torch.float16, cache_enabled=False)


def _device_type(options: TrainerOptions) -> str:
    if options.accelerator == "cpu" or not torch.accelerator.is_available():
        return "cpu"
    return str(torch.accelerator.current_accelerator()).partition(":")[0]
