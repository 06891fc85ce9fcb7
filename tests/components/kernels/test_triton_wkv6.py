"""WKV-6 in Triton against the recurrence in float64: on a GPU where there is one, otherwise by
Triton's interpreter, which `test_triton_interpreted.py` starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import _triton
from components.kernels.wkv6 import FORMS, wkv6, wkv6_step

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("small_segments")
GPU = torch.cuda.is_available()
INTERPRETED = _triton.interpreted()
DEVICE = torch.device("cuda" if GPU else "cpu")
NARROW = {torch.float16: 4e-3, torch.bfloat16: 2e-2}
TOLERANCE = {torch.float32: 1e-5, **NARROW} if GPU else {torch.float32: 3e-6}
LENGTHS = [(1,), (15,), (16,), (17,), (65,), (66, 3, 17), (8, 1, 5)]
# log(-log(decay)): decays from e^-1e-4 to e^-50
REGIMES = {"near one": (-9.3, -7.0), "near zero": (1.5, 3.9), "mixed": (-9.3, 3.9)}
NAMES = ("y", "final state", "dr", "dk", "dv", "dw", "dbonus", "dstate")

runs = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")


def inputs(lengths: tuple[int, ...], keys: int = 32, values: int = 32, regime: str = "mixed") -> list[Tensor]:
    """r, k, v, w, bonus, state in float64, representable in every dtype but for w and the state in float32."""
    generator = torch.Generator().manual_seed(sum(lengths) + keys)
    shapes = [(sum(lengths), 2, keys)] * 2 + [(sum(lengths), 2, values), (sum(lengths), 2, keys)]
    shapes += [(2, keys), (len(lengths), 2, keys, values)]
    tensors = [torch.randn(shape, generator=generator).bfloat16().half() for shape in shapes]
    low, high = REGIMES[regime]
    tensors[3] = low + (high - low) * torch.rand(shapes[3], generator=generator)
    return [x.double().to(DEVICE) for x in tensors]


def results(tensors: list[Tensor], lengths: tuple[int, ...], form: str) -> list[Tensor]:
    """Output, final state, and the gradients of all six inputs through both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    r, k, v, w, bonus, state = leaves
    y, after = wkv6(r, k, v, w, bonus, torch.tensor([0, *lengths]).cumsum(0), state, form=form)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).bfloat16().to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


def narrowed(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    r, k, v, w, bonus, state = tensors
    return [*(x.to(dtype) for x in (r, k, v)), w.float(), bonus.to(dtype), state.float()]


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
def test_the_kernels_are_stable_for_every_decay(regime: str, dtype: torch.dtype) -> None:
    tensors = inputs((40, 9), regime=regime)
    expected = results(tensors, (40, 9), "reference")
    assert_equal(results(narrowed(tensors, dtype), (40, 9), "triton"), expected, TOLERANCE[dtype])


@runs
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("keys", "values"), [(16, 32), (64, 64), (32, 128), (128, 128)])
def test_the_kernels_take_heads_of_several_sizes(keys: int, values: int, dtype: torch.dtype) -> None:
    tensors = inputs((18,), keys, values)
    expected = results(tensors, (18,), "reference")
    assert_equal(results(narrowed(tensors, dtype), (18,), "triton"), expected, TOLERANCE[dtype])


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU every test runs in these dtypes")
@pytest.mark.usefixtures("numbers_of_a_gpu")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrow_inputs_are_multiplied_as_a_gpu_does(dtype: torch.dtype) -> None:
    tensors = narrowed(inputs((40, 9)), dtype)
    actual = results(tensors, (40, 9), "triton")
    assert [x.dtype for x in actual] == [x.dtype for x in (tensors[2], tensors[5], *tensors)]
    assert_equal(actual, results([x.double() for x in tensors], (40, 9), "reference"), NARROW[dtype])


@runs
@pytest.mark.parametrize("part", [0, 1], ids=["output", "final state"])
def test_each_result_alone_carries_gradients(part: int) -> None:
    gradients = []
    for form, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs((36, 3))]
        r, k, v, w, bonus, state = leaves
        out = wkv6(r, k, v, w, bonus, torch.tensor([0, 36, 39]), state, form=form)[part]
        found = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        gradients.append([x.double() for x in found])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@runs
def test_a_decay_of_nothing_has_finite_gradients() -> None:
    tensors = narrowed(inputs((40,)), torch.float32)
    tensors[3] = torch.full_like(tensors[3], 95.0)
    found = results(tensors, (40,), "triton")
    assert all(x.isfinite().all() for x in found)
    assert not found[5].any()


@runs
def test_a_row_continued_from_its_state_equals_the_whole() -> None:
    r, k, v, w, bonus, state = narrowed(inputs((81,)), torch.float32)
    whole, end = wkv6(r, k, v, w, bonus, torch.tensor([0, 81]), state, form="triton")
    pieces = []
    for part in (slice(0, 39), slice(39, 40), slice(40, 45), slice(45, 81)):
        cut = torch.tensor([0, part.stop - part.start])
        y, state = wkv6(r[part], k[part], v[part], w[part], bonus, cut, state, form="triton")
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)


@runs
def test_a_step_is_one_kernel_and_has_gradients() -> None:
    tensors = inputs((1, 1, 1))
    expected = results(tensors, (1, 1, 1), "reference")
    leaves = [x.float().requires_grad_() for x in tensors]
    y, after = wkv6_step(*leaves)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).bfloat16().to(x)).sum() for x in (y, after))
    assert "_Fused" in type(y.grad_fn).__name__
    assert_equal([y, after, *torch.autograd.grad(loss, leaves)], expected, 1e-5)


@runs
def test_views_are_taken_as_they_lie() -> None:
    r, k, v, w, bonus, state = narrowed(inputs((20,)), torch.float32)
    want, _ = wkv6(r, k, v, w, bonus, torch.tensor([0, 20]), state, form="triton")
    strided = torch.stack([r, k, w], -1)
    r, k, w = strided.unbind(-1)
    got, _ = wkv6(r, k, v, w, bonus, torch.tensor([0, 20]), state.mT.clone().mT, form="triton")
    torch.testing.assert_close(got, want)


@runs
@pytest.mark.parametrize(
    ("width", "dtype", "says"),
    [(48, torch.float32, "16, 32, 64, 128, not of 48 × 48"), (32, torch.float64, "not float64")],
)
def test_what_the_kernels_cannot_take_is_refused(width: int, dtype: torch.dtype, says: str) -> None:
    r, k, v, w, bonus, state = (x.to(dtype) for x in inputs((20,), width, width))
    with pytest.raises(AuroraError, match=says):
        wkv6(r, k, v, w, bonus, torch.tensor([0, 20]), state, form="triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes them")
def test_tensors_of_the_cpu_are_refused() -> None:
    r, k, v, w, bonus, state = (x.float().cpu() for x in inputs((20,)))
    with pytest.raises(AuroraError, match="takes tensors on cuda, not on cpu"):
        wkv6(r, k, v, w, bonus, torch.tensor([0, 20]), state, form="triton")


def test_the_kernels_come_first_where_they_can() -> None:
    assert next(iter(FORMS)) == "triton"
