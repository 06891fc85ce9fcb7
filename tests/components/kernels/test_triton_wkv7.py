"""WKV-7 in Triton against the recurrence in float64: on a GPU where there is one, otherwise by
Triton's interpreter, which `test_triton_interpreted.py` starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import _triton
from components.kernels.wkv7 import FORMS, wkv7, wkv7_step

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("small_segments")
GPU = torch.cuda.is_available()
INTERPRETED = _triton.interpreted()
DEVICE = torch.device("cuda" if GPU else "cpu")
NARROW = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
TOLERANCE = {torch.float32: 1e-5, **NARROW} if GPU else {torch.float32: 3e-6}
LENGTHS = [(1,), (15,), (16,), (17,), (65, 3), (8, 1, 5)]
# as a model's; decays down to e^-50; one key again and again, hardly forgotten and wholly replaced
REGIMES = ("as trained", "near zero", "repeated keys")
NAMES = ("y", "final state", "dr", "dw", "dk", "dv", "da", "db", "dstate")

runs = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")


def inputs(lengths: tuple[int, ...], keys: int = 16, values: int = 32, regime: str = "as trained") -> list[Tensor]:
    """r, w, k, v, a, b, state in float64, representable in every dtype but for w and the state in float32."""
    generator = torch.Generator().manual_seed(sum(lengths) + keys)
    length = sum(lengths)
    r, w, k, a, gate = (torch.randn(length, 2, keys, generator=generator) for _ in range(5))
    v = torch.randn(length, 2, values, generator=generator)
    state = torch.randn(len(lengths), 2, keys, values, generator=generator)
    w, gate = -0.606531 * w.sigmoid(), gate.sigmoid()
    if regime == "near zero":
        w = -50 * torch.rand(w.shape, generator=generator)
    if regime == "repeated keys":
        w, gate, a = torch.full_like(w, -1e-4), torch.ones_like(gate), a[:1].expand_as(a)
    a = -torch.nn.functional.normalize(a, dim=-1)
    narrow = [x.bfloat16().half() for x in (r, k, v, a, -a * gate)]
    r, k, v, a, b = narrow
    return [x.double().to(DEVICE) for x in (r, w, k, v, a, b, state)]


def results(tensors: list[Tensor], lengths: tuple[int, ...], form: str) -> list[Tensor]:
    """Output, final state, and the gradients of all seven inputs through both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    y, after = wkv7(*leaves[:6], torch.tensor([0, *lengths]).cumsum(0), leaves[6], form=form)
    return [y, after, *torch.autograd.grad(loss_of(y, after), leaves)]


def loss_of(y: Tensor, after: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in (y, after))
    return (y * first).sum() + (after * second).sum()


def narrowed(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    r, w, k, v, a, b, state = tensors
    return [r.to(dtype), w.float(), *(x.to(dtype) for x in (k, v, a, b)), state.float()]


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, got, want in zip(NAMES, actual, expected, strict=True):
        # inputs are of size one, so where all of a gradient is below that, rounding is not
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.1e}"


@runs
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_kernels_equal_the_recurrence(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = inputs(lengths)
    expected = results(tensors, lengths, "reference")
    assert_equal(results(narrowed(tensors, dtype), lengths, "triton"), expected, TOLERANCE[dtype])


@runs
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_the_kernels_are_stable_for_every_decay_and_key(regime: str, dtype: torch.dtype) -> None:
    tensors = inputs((35,), regime=regime)
    expected = results(tensors, (35,), "reference")
    assert_equal(results(narrowed(tensors, dtype), (35,), "triton"), expected, TOLERANCE[dtype])


@runs
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("keys", "values"), [(32, 16), (64, 64), (128, 128)])
def test_the_kernels_take_heads_of_several_sizes(keys: int, values: int, dtype: torch.dtype) -> None:
    tensors = inputs((19,), keys, values)
    expected = results(tensors, (19,), "reference")
    assert_equal(results(narrowed(tensors, dtype), (19,), "triton"), expected, TOLERANCE[dtype])


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU every test runs in these dtypes")
@pytest.mark.usefixtures("numbers_of_a_gpu")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrow_inputs_are_multiplied_as_a_gpu_does(dtype: torch.dtype) -> None:
    tensors = narrowed(inputs((40, 9)), dtype)
    actual = results(tensors, (40, 9), "triton")
    assert [x.dtype for x in actual] == [x.dtype for x in (tensors[3], tensors[6], *tensors)]
    assert_equal(actual, results([x.double() for x in tensors], (40, 9), "reference"), NARROW[dtype])


@runs
@pytest.mark.parametrize("part", [0, 1], ids=["output", "final state"])
def test_each_result_alone_carries_gradients(part: int) -> None:
    gradients = []
    for form, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs((35, 3))]
        out = wkv7(*leaves[:6], torch.tensor([0, 35, 38]), leaves[6], form=form)[part]
        found = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        gradients.append([x.double() for x in found])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@runs
def test_a_decay_of_nothing_has_finite_gradients() -> None:
    tensors = narrowed(inputs((40,)), torch.float32)
    tensors[1] = torch.full_like(tensors[1], float("-inf"))
    assert all(x.isfinite().all() for x in results(tensors, (40,), "triton"))


@runs
def test_a_step_is_one_kernel_and_has_gradients() -> None:
    tensors = inputs((1, 1, 1))
    expected = results(tensors, (1, 1, 1), "reference")
    leaves = [x.float().requires_grad_() for x in tensors]
    y, after = wkv7_step(*leaves)
    assert "_Fused" in type(y.grad_fn).__name__
    assert_equal([y, after, *torch.autograd.grad(loss_of(y, after), leaves)], expected, 1e-5)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes them")
def test_tensors_of_the_cpu_are_refused() -> None:
    r, w, k, v, a, b, state = (x.float().cpu() for x in inputs((20,)))
    with pytest.raises(AuroraError, match="takes tensors on cuda, not on cpu"):
        wkv7(r, w, k, v, a, b, torch.tensor([0, 20]), state, form="triton")


def test_the_kernels_come_first_where_they_can() -> None:
    assert next(iter(FORMS)) == "triton"
