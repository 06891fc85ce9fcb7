"""The Triton kernels compile for a GPU of compute capability 9.0, without one, as our own calls launch them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from components.kernels import _triton

pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    _triton.interpreted() or torch.cuda.is_available(), reason="the interpreter does not compile, and a GPU shows more"
)]
SHARED_MEMORY = 227 * 1024


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every launch compiles for sm_90 instead; the list of what came out."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    binaries: list[Any] = []
    run: Callable[..., Any] = JITFunction.run
    target = GPUTarget("cuda", 90, 32)
    stub = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        binaries.append(run(self, *arguments, grid=grid, warmup=True, **options))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", stub)
    yield binaries


def sizes(length: int, width: int, count: int) -> list[Tensor]:
    return [torch.zeros(length, 2, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(count)]


@pytest.mark.parametrize("length", [1, 40])
def test_wkv6_compiles_and_fits(compiled: list[Any], length: int) -> None:
    from components.kernels._wkv6_triton import wkv6_triton

    r, k, v, w = sizes(length, 64, 4)
    y, after = wkv6_triton(r, k, v, w.float(), r[0], (length,), torch.zeros(1, 2, 64, 64))
    (y.sum() + after.sum()).backward()
    assert {x.name for x in compiled} == {"recurrent" if length == 1 else "forward", "advance", "backward"}
    assert all(x.metadata.shared <= SHARED_MEMORY for x in compiled)


def test_wkv7_compiles_and_fits(compiled: list[Any]) -> None:
    from components.kernels._wkv7_triton import wkv7_triton

    r, w, k, v, a, b = sizes(40, 32, 6)
    y, after = wkv7_triton(r, w.float(), k, v, a, b, (40,), torch.zeros(1, 2, 32, 32))
    (y.sum() + after.sum()).backward()
    assert {x.name for x in compiled} == {"forward", "retreat", "backward"}
    assert all(x.metadata.shared <= SHARED_MEMORY for x in compiled)
