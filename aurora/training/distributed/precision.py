"""The dtypes of training, as Lightning's precision plugins, and the loss scale of float16.

float16 has nothing below 6e-8 and nothing above 65,504: the loss is multiplied before the backward pass and gradients
are divided before they are used, so that small ones do not vanish (Micikevicius et al. 2018, arXiv 1710.03740, 3.2).
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import nn

from aurora.config import Config
from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions


class AsBuilt(HalfPrecision):
    """Half precision without a conversion: a model is built in its dtypes, and keeps them.

    Lightning's would cast every parameter; adapters stay float32 beside bfloat16 weights.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module


class Float16(Precision):
    """Products in float16 and no more: Lightning's MixedPrecision adds a scaler of its own, which knows neither rows
    that add up nor skipped steps (`LossScale` does), and takes bfloat16 on CPUs."""

    def __init__(self, device: str) -> None:
        self.device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        # what is kept of casts would be whole weights beside those that are sharded
        return torch.autocast(self.device, torch.float16, cache_enabled=False)


def precision(options: TrainerOptions) -> dict[str, Any]:
    """The arguments of Lightning's trainer."""
    if options.precision == "16-mixed":
        return {"plugins": [Float16(_device_type(options))]}
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
                          "take trainer.precision=16-mixed")


def in_dtype(config: Config) -> Config:
    """The config with the dtype that the weights have in training. AuroraError for float16 without float32 weights."""
    precision, dtype = config.trainer.precision, config.model.dtype
    if precision == "16-mixed" and dtype != "float32":
        raise AuroraError(f"trainer.precision=16-mixed computes in float16 with float32 weights, and dtype is {dtype}; "
                          "take dtype=float32")
    if precision != "bf16-true" or dtype == "bfloat16":
        return config
    return replace(config, model=replace(config.model, dtype="bfloat16"), tree={**config.tree, "dtype": "bfloat16"})


def _device_type(options: TrainerOptions) -> str:
    if options.accelerator == "cpu" or not torch.accelerator.is_available():
        return "cpu"
    return str(torch.accelerator.current_accelerator()).partition(":")[0]


# ---- loss scale ------------------------------------------------------------------------------------------------

START, LEAST = 2.0**16, 1.0  # of a mean loss
GROW_AFTER = 2000  # steps without an overflow
USUAL_ROW = 4096  # targets of a row at most, where the data does not say


def loss_scale_for(plugin: Precision, row_tokens: int | None) -> "LossScale":
    """The loss scale that a precision plugin needs: only float16 has one. AuroraError for Lightning's own."""
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        raise AuroraError("Trainer(precision='16-mixed') scales the gradients of every backward pass by itself, which "
                          "does not fit steps of several rows; take Trainer(plugins=[aurora.training.distributed."
                          "precision.Float16('cuda')]) or precision='bf16-mixed'")
    return LossScale(max_targets=row_tokens or USUAL_ROW if isinstance(plugin, Float16) else None)


class LossScale:
    """What the summed loss of a row is multiplied with: twice as much after many steps in a row without an overflow,
    half as much after one. Without `max_targets` it is 1, always: float32 and bfloat16 have exponents enough.

    `scale` is that of a mean loss, as everybody counts it. Rows add sums, in whose gradients up to `max_targets`
    targets come together, so that it is divided by so many; by a power of two, to round nothing.
    """

    def __init__(self, *, max_targets: int | None = None) -> None:
        self.scale = START
        self.overflows = 0
        self._good = 0  # steps since it was changed
        self._divisor = None if max_targets is None else 2.0 ** math.ceil(math.log2(max_targets))

    @property
    def factor(self) -> float:
        """Of the summed loss of a row; the same for all rows of a step, on all ranks."""
        return 1.0 if self._divisor is None else self.scale / self._divisor

    def overflowed(self, loss: float, norm: float) -> bool:
        """Whether a step with this summed loss and this gradient norm is lost to its scale alone, so that it is skipped
        and does not count as a bad step. Asked once per step; all ranks hand in the same sums, so that they agree
        without communication."""
        if self._divisor is None:
            return False
        if math.isfinite(norm):
            self._good += 1
            if self._good >= GROW_AFTER:
                self.scale, self._good = 2 * self.scale, 0
            return False
        self._good = 0
        # a loss that is not finite was lost before it was multiplied, and below the least scale nothing is won
        if not math.isfinite(loss) or self.scale <= LEAST:
            return False
        self.scale /= 2
        self.overflows += 1
        return True

    def metrics(self) -> dict[str, float]:
        """What the step metrics show of it."""
        return {} if self._divisor is None else {"loss_scale": self.scale, "overflows": self.overflows}

    def state_dict(self) -> dict[str, Any]:
        """JSON that `load_state_dict` goes on with."""
        return {} if self._divisor is None else {"scale": self.scale, "good": self._good, "overflows": self.overflows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; an empty one changes nothing."""
        if state:
            self.scale, self._good, self.overflows = state["scale"], state["good"], state["overflows"]
