"""What the tests of the Triton kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from components.kernels import _triton


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sequences from 64 on are cut, as long ones are on a GPU."""
    monkeypatch.setattr(_triton, "SHORTEST_SEGMENT", 32)
    monkeypatch.setattr(_triton, "PROGRAMS_PER_PROCESSOR", 4)
    monkeypatch.setattr(_triton, "_processors", lambda device: 1)
    _triton.segments.cache_clear()
    yield
    _triton.segments.cache_clear()


@pytest.fixture
def numbers_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies in bfloat16 and tf32 where a GPU would.

    It keeps bfloat16 as the bits of an integer, and neither multiplies them nor turns whole numbers into them rightly.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from components.kernels import _triton_plan, _wkv7_triton

    cast = InterpreterBuilder.cast_impl

    def widened(x: Any, precision: str) -> Any:
        if x.dtype == tl.bfloat16:
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        if x.dtype == tl.float32 and precision == "TF32":
            bits = np.ascontiguousarray(x.data).view(np.uint32)
            return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)
        return x.data.astype(np.float32)

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, inexact: Any) -> Any:
        a, b = (widened(x, str(precision).rpartition(".")[2]) for x in (a, b))
        return TensorHandle(np.matmul(a, b) + d.data, d.dtype.scalar)

    def cast_rightly(self: Any, source: Any, dtype: Any) -> Any:
        if dtype.scalar == tl.bfloat16 and source.dtype.scalar not in (tl.float32, tl.bfloat16):
            source = TensorHandle(source.data.astype(np.float32), tl.float32)
        return cast(self, source, dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_rightly)
    for module in (_triton_plan, _wkv7_triton):
        monkeypatch.setattr(module, "interpreted", lambda: False)
