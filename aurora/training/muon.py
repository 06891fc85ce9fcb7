"""Muon on processors that have no products in bfloat16."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Muon(torch.optim.Muon):
    """torch's Muon, which makes the updates of matrices orthogonal in float32 instead of bfloat16 on CPUs that compute
    bfloat16 in software: there it took two thirds of a training step."""

    def step(self, closure: Any = None) -> Any:
        """One optimizer step, and what the closure gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]["params"][0]
        in_software = first.device.type == "cpu" and not multiplies_bfloat16()
        with _Float32() if in_software else nullcontext():
            super().step()  # type: ignore[no-untyped-call]
        return loss


def multiplies_bfloat16() -> bool:
    """Whether the processor has products in bfloat16 (AVX-512, AVX-NE-CONVERT, AMX, or Arm's)."""
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Float32(TorchFunctionMode):
    """`x.bfloat16()` gives a float32 copy: torch.optim.Muon has no option for the precision."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))
