"""x · wᵀ in float32 on a CPU, where no gradient is wanted, by the faster of the two libraries that torch brings.

torch multiplies by its BLAS, which is mostly MKL: at the peak of Intel's processors and at half of it on AMD's, where
oneDNN is twice as fast. Which one is faster here is measured once for every kind of product.

Shape letters: T positions, K inputs, N outputs.
"""

import logging
import os
from functools import partial
from timeit import timeit

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora.errors import AuroraError

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "onednn")
"""`AURORA_FLOAT32` takes one of these names, and nothing is measured then."""
FEWEST_POSITIONS = 64
FEWEST_WEIGHTS = 2**16
"""Smaller products are torch's: there is little to gain."""
MEASURED_POSITIONS = 256
MEASURED_PRODUCTS = 2**26
"""Multiplications of one measurement at least: small products are repeated, since a clock is not so exact."""
ROUNDS = 3
LEAST_GAIN = 1.2
LARGEST_DIFFERENCE = 1e-6  # relative; oneDNN may round inputs, which the user can have asked torch for

_chosen: dict[tuple[int | bool, ...], str] = {}


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., K], weight [N, K], bias [N] → [..., N]: as `F.linear` in every dtype, on every device."""
    if not _is_choice(x, weight, bias):
        return F.linear(x, weight, bias)
    library = os.environ.get("AURORA_FLOAT32") or _measured(x, weight, bias)
    if library not in LIBRARIES:
        raise AuroraError(f"AURORA_FLOAT32={library}: float32 products are made by {' or '.join(LIBRARIES)}")
    return onednn(x, weight, bias) if library == "onednn" else F.linear(x, weight, bias)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by oneDNN, in the precision of the inputs."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def choose(torch_seconds: float, onednn_seconds: float, difference: float) -> str:
    """The library to take: oneDNN has to be clearly faster, and as exact."""
    gains = onednn_seconds * LEAST_GAIN <= torch_seconds and difference <= LARGEST_DIFFERENCE
    return "onednn" if gains else "torch"


def _is_choice(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        x.dtype is torch.float32 and weight.numel() >= FEWEST_WEIGHTS
        and x.numel() >= FEWEST_POSITIONS * weight.shape[1]
        and all(type(t) in (Tensor, torch.nn.Parameter) and t.dtype is x.dtype and t.device.type == "cpu"
                for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and torch._C._has_mkldnn
    )


def _measured(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    kind = (torch.get_num_threads(), weight.is_contiguous(), *(size.bit_length() for size in weight.shape))
    if kind not in _chosen:
        rows = x.reshape(-1, x.shape[-1])[:MEASURED_POSITIONS]
        times = -(-MEASURED_POSITIONS // len(rows))  # of few rows the library is chosen as of many
        _chosen[kind] = _measure(rows.repeat(times, 1)[:MEASURED_POSITIONS], weight, bias)
    return _chosen[kind]


def _measure(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    own, other = F.linear(x, weight, bias), onednn(x, weight, bias)
    difference = float((own - other).norm() / own.norm().clamp(min=torch.finfo(own.dtype).tiny))
    times = -(-MEASURED_PRODUCTS // (len(x) * weight.numel()))
    rounds = [[timeit(partial(product, x, weight, bias), number=times) / times for product in (F.linear, onednn)]
              for _ in range(ROUNDS)]
    by_torch, by_onednn = (min(column) for column in zip(*rounds, strict=True))
    library = choose(by_torch, by_onednn, difference)
    log.info("float32 products of %d by %d are made by %s: torch %.3g ms, onednn %.3g ms, difference %.0e",
             *weight.shape, library, 1e3 * by_torch, 1e3 * by_onednn, difference)
    return library
