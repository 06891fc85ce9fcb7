"""Attention over frames: the compiled form against torch in float64, wherever its blocks end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from components.kernels import _native
from components.kernels.vision import attention, attention_reference

# torch's own error in the same format, with room for another order of additions
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3}
SHAPES = [(2, 64, 2, 64), (1, 33, 3, 64), (2, 31, 2, 72), (1, 100, 1, 32), (3, 1, 2, 128), (1, 17, 2, 7)]


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """query, key, value [N, M, H, K] as slices of one tensor, as a layer makes them."""
    frames, tokens, heads, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    return list((2 * torch.randn(frames, tokens, 3, heads, width, generator=generator)).to(dtype).unbind(2))


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(shape: tuple[int, int, int, int], dtype: torch.dtype, biased: bool) -> None:
    given = inputs(shape, dtype)
    bias = torch.rand(shape[:2]) * 4 if biased else None
    wide = attention_reference(*(x.double() for x in given), None if bias is None else bias.double())
    assert error(attention(*given, bias), wide) <= TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("instructions", _native.INSTRUCTION_SETS)
def test_every_instruction_set_computes_the_same(instructions: str) -> None:
    """Those that this processor has; each in a process of its own, since it is chosen once."""
    names = list(_native.INSTRUCTION_SETS)
    if names.index(instructions) < names.index(_native.instruction_set()):
        pytest.skip(f"this processor has no {instructions}")
    program = (
        "import torch; from components.kernels.vision import *\n"
        "torch.manual_seed(0); x = torch.randn(2, 45, 3, 2, 64).bfloat16().unbind(2); bias = torch.rand(2, 45)\n"
        "wide = attention_reference(*(y.double() for y in x), bias.double())\n"
        "print(float((attention(*x, bias).double() - wide).norm() / wide.norm()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                         env=dict(os.environ, AURORA_CPU=instructions))
    assert float(run.stdout) <= TOLERANCE[torch.bfloat16]


def test_scores_of_any_size_keep_their_softmax() -> None:
    query, key, value = inputs((1, 40, 1, 64), torch.float32)
    wide = attention_reference(*(x.double() for x in (100 * query, key, value)))
    assert error(attention(100 * query, key, value), wide) <= 1e-4


def test_nothing_that_is_no_number_disappears() -> None:
    query, key, value = (x.clone() for x in inputs((1, 20, 1, 64), torch.float32))
    key[0, 3, 0, 5] = torch.nan
    assert attention(query, key, value).isnan().all()


def test_gradients_are_those_of_the_reference() -> None:
    given = [x.clone().requires_grad_() for x in inputs((1, 20, 2, 64), torch.float32)]
    own = torch.autograd.grad(attention(*given).square().sum(), given)
    wide = torch.autograd.grad(attention_reference(*given).square().sum(), given)
    torch.testing.assert_close(own, wide)
