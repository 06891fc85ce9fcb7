"""The Triton kernels compile for a GPU of compute capability 9.0, without one, and fit into its shared memory."""

from __future__ import annotations

from typing import Any

import pytest

from components.kernels import _triton

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(_triton.interpreted(), reason="the interpreter does not compile")
SHARED_MEMORY = 227 * 1024
WIDE = {"w", "start", "final", "end", "total", "outer", "local", "maps", "bonus"}
INDICES = {"segments", "bounds", "chunks"}
NARROW = "*bf16"  # the rest


def compiled(kernel: Any, warps: int, **constants: Any) -> Any:
    """The kernel for inputs in bfloat16; what `constants` does not name is a tensor."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {}
    for name in kernel.arg_names:
        pointer = "*fp32" if name in WIDE else "*i32" if name in INDICES else NARROW
        types[name] = "constexpr" if name in constants else pointer
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    # tensors of torch are aligned; without that every element is loaded alone
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if types[name] != "constexpr"}
    source = ASTSource(kernel, types, places, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 1})


def sizes(width: int, levels: int) -> dict[str, Any]:
    import triton.language as tl

    numbers = {"DOT": tl.bfloat16, "PRECISION": "ieee", "EXACT": False}
    return {"H": 32, "K": width, "V": width, "C": 1 << levels, "LEVELS": levels} | numbers


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_wkv6_compiles_and_fits(name: str) -> None:
    from components.kernels import _wkv6_kernels

    binary = compiled(getattr(_wkv6_kernels, name), 4, **sizes(64, 5))
    assert binary.metadata.shared <= SHARED_MEMORY
    assert ".target sm_90" in binary.asm["ptx"] and binary.asm["cubin"]


def test_wkv7_compiles_and_fits() -> None:
    from components.kernels import _wkv7_backward, _wkv7_kernels

    absent = dict.fromkeys(("states", "u"))
    options = {"OUTPUT": True, "STORES": False, "IDENTITY": False, "INVERSE": "tf32"}
    for kernel, more in ((_wkv7_kernels.forward, absent | options), (_wkv7_backward.backward, {})):
        binary = compiled(kernel, 4, **sizes(64, 4), **more)
        assert binary.metadata.shared <= SHARED_MEMORY
