"""WKV-6 and WKV-7 in Triton against the recurrence in float64: on a GPU where there is one, otherwise by
Triton's interpreter, which `test_triton_interpreted.py` starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import _triton
from components.kernels.wkv6 import FORMS as FORMS6
from components.kernels.wkv6 import wkv6, wkv6_step
from components.kernels.wkv7 import FORMS as FORMS7
from components.kernels.wkv7 import wkv7, wkv7_step

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("small_segments")
GPU = torch.cuda.is_available()
INTERPRETED = _triton.interpreted()
DEVICE = torch.device("cuda" if GPU else "cpu")
# of WKV-6, log(-log(decay)): decays from e^-1e-4 to e^-50
DECAYS = {"near one": (-9.3, -7.0), "near zero": (1.5, 3.9), "mixed": (-9.3, 3.9)}

runs = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")


def inputs6(lengths: tuple[int, ...], keys: int = 32, values: int = 32, regime: str = "mixed") -> list[Tensor]:
    """r, k, v, w, bonus, state in float64, representable in every dtype but for w and the state in float32."""
    generator = torch.Generator().manual_seed(sum(lengths) + keys)
    shapes = [(sum(lengths), 2, keys)] * 2 + [(sum(lengths), 2, values), (sum(lengths), 2, keys)]
    shapes += [(2, keys), (len(lengths), 2, keys, values)]
    tensors = [torch.randn(shape, generator=generator).bfloat16().half() for shape in shapes]
    low, high = DECAYS[regime]
    tensors[3] = low + (high - low) * torch.rand(shapes[3], generator=generator)
    return [x.double().to(DEVICE) for x in tensors]


def inputs7(lengths: tuple[int, ...], keys: int = 16, values: int = 32, regime: str = "as trained") -> list[Tensor]:
    """r, w, k, v, a, b, state in float64, representable in every dtype but for w and the state in float32.

    "repeated keys": one key again and again, hardly forgotten and wholly replaced.
    """
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


class Case(NamedTuple):
    """An operator, and what hurts it; its last input is the state."""

    op: Callable[..., Any]
    step: Callable[..., Any]
    forms: Mapping[str, Any]
    inputs: Callable[..., list[Tensor]]
    names: str  # of the inputs but the state
    narrow: Mapping[torch.dtype, float]
    lengths: Sequence[tuple[int, ...]]
    regimes: Sequence[str]
    heads: Sequence[tuple[int, int]]
    no_decay: float  # a w after which nothing remains

    @property
    def tolerance(self) -> Mapping[torch.dtype, float]:
        return {torch.float32: 1e-5, **self.narrow} if GPU else {torch.float32: 3e-6}

    def run(self, tensors: Sequence[Tensor], lengths: tuple[int, ...], form: str = "triton") -> Any:
        *given, state = tensors
        return self.op(*given, torch.tensor([0, *lengths]).cumsum(0), state, form=form)

    def results(self, tensors: list[Tensor], lengths: tuple[int, ...], form: str = "triton") -> list[Tensor]:
        """Output, final state, and the gradients of all inputs through both."""
        leaves = [x.clone().requires_grad_() for x in tensors]
        y, after = self.run(leaves, lengths, form)
        return [y, after, *torch.autograd.grad(loss_of(y, after), leaves)]

    def narrowed(self, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [x.float() if name in ("w", "state") else x.to(dtype)
                for name, x in zip([*self.names.split(), "state"], tensors, strict=True)]

    def assert_equal(self, actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
        for name, got, want in zip(["y", "final", *self.names.split(), "state"], actual, expected, strict=True):
            # inputs are of size one, so where all of a gradient is below that, rounding is not
            error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
            assert error <= tolerance, f"{name}: {error:.1e}"

    def check(self, tensors: list[Tensor], lengths: tuple[int, ...], dtype: torch.dtype) -> None:
        expected = self.results(tensors, lengths, "reference")
        self.assert_equal(self.results(self.narrowed(tensors, dtype), lengths), expected, self.tolerance[dtype])


CASES = {
    "wkv6": Case(wkv6, wkv6_step, FORMS6, inputs6, "r k v w bonus", {torch.float16: 4e-3, torch.bfloat16: 2e-2},
                 [(1,), (15,), (16,), (17,), (65,), (66, 3, 17), (8, 1, 5)], tuple(DECAYS),
                 [(16, 32), (64, 64), (32, 128), (128, 128)], 95.0),
    "wkv7": Case(wkv7, wkv7_step, FORMS7, inputs7, "r w k v a b", {torch.float16: 4e-3, torch.bfloat16: 3e-2},
                 [(1,), (15,), (16,), (17,), (65, 3), (8, 1, 5)], ("as trained", "near zero", "repeated keys"),
                 [(32, 16), (64, 64), (128, 128)], float("-inf")),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def loss_of(y: Tensor, after: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in (y, after))
    return (y * first).sum() + (after * second).sum()


def each(field: str) -> Any:
    """Every case with every dtype and one of what it has in a field."""
    return pytest.mark.parametrize(("case", "dtype", field), [
        pytest.param(case, dtype, value, id=f"{name}-{dtype}-{value}")
        for name, case in CASES.items() for dtype in case.tolerance for value in getattr(case, field)
    ])


@runs
@each("lengths")
def test_the_kernels_equal_the_recurrence(case: Case, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    case.check(case.inputs(lengths), lengths, dtype)


@runs
@each("regimes")
def test_the_kernels_are_stable_for_every_decay_and_key(case: Case, dtype: torch.dtype, regimes: str) -> None:
    lengths = (40, 9) if case is CASES["wkv6"] else (35,)
    case.check(case.inputs(lengths, regime=regimes), lengths, dtype)


@runs
@each("heads")
def test_the_kernels_take_heads_of_several_sizes(case: Case, dtype: torch.dtype, heads: tuple[int, int]) -> None:
    case.check(case.inputs((19,), *heads), (19,), dtype)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU every test runs in these dtypes")
@pytest.mark.usefixtures("numbers_of_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_case
def test_narrow_inputs_are_multiplied_as_a_gpu_does(case: Case, dtype: torch.dtype) -> None:
    tensors = case.narrowed(case.inputs((40, 9)), dtype)
    actual = case.results(tensors, (40, 9))
    values = tensors[case.names.split().index("v")]
    assert [x.dtype for x in actual] == [x.dtype for x in (values, tensors[-1], *tensors)]
    case.assert_equal(actual, case.results([x.double() for x in tensors], (40, 9), "reference"), case.narrow[dtype])


@runs
@pytest.mark.parametrize("part", [0, 1], ids=["output", "final state"])
@every_case
def test_each_result_alone_carries_gradients(case: Case, part: int) -> None:
    gradients = []
    for form, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in case.inputs((36, 3))]
        out = case.run(leaves, (36, 3), form)[part]
        found = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        gradients.append([x.double() for x in found])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@runs
@every_case
def test_a_decay_of_nothing_has_finite_gradients(case: Case) -> None:
    tensors, place = case.narrowed(case.inputs((40,)), torch.float32), case.names.split().index("w")
    tensors[place] = torch.full_like(tensors[place], case.no_decay)
    found = case.results(tensors, (40,))
    assert all(x.isfinite().all() for x in found)
    if case is CASES["wkv6"]:  # the decay itself is zero there
        assert not found[2 + place].any()


@runs
@every_case
def test_a_row_continued_from_its_state_equals_the_whole(case: Case) -> None:
    *row, state = case.narrowed(case.inputs((81,)), torch.float32)
    whole, end = case.run([*row, state], (81,))
    pieces = []
    for part in (slice(0, 39), slice(39, 40), slice(40, 45), slice(45, 81)):
        y, state = case.run([*(x[part] if len(x) == 81 else x for x in row), state], (part.stop - part.start,))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)


@runs
@every_case
def test_a_step_is_one_kernel_and_has_gradients(case: Case) -> None:
    tensors = case.inputs((1, 1, 1))
    leaves = [x.float().requires_grad_() for x in tensors]
    y, after = case.step(*leaves)
    assert "_Fused" in type(y.grad_fn).__name__
    found = [y, after, *torch.autograd.grad(loss_of(y, after), leaves)]
    case.assert_equal(found, case.results(tensors, (1, 1, 1), "reference"), 1e-5)


@runs
@every_case
def test_views_are_taken_as_they_lie(case: Case) -> None:
    tensors = case.narrowed(case.inputs((20,)), torch.float32)
    want, _ = case.run(tensors, (20,))
    *row, state = (torch.stack([x, x], -1)[..., 0] for x in tensors)
    got, _ = case.run([*row, state.mT.clone().mT], (20,))
    torch.testing.assert_close(got, want)


@runs
@pytest.mark.parametrize(
    ("width", "dtype", "says"),
    [(48, torch.float32, "16, 32, 64, 128, not of 48 × 48"), (32, torch.float64, "not float64")],
)
@every_case
def test_what_the_kernels_cannot_take_is_refused(case: Case, width: int, dtype: torch.dtype, says: str) -> None:
    with pytest.raises(AuroraError, match=says):
        case.run([x.to(dtype) for x in case.inputs((20,), width, width)], (20,))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes them")
@every_case
def test_tensors_of_the_cpu_are_refused(case: Case) -> None:
    with pytest.raises(AuroraError, match="takes tensors on cuda, not on cpu"):
        case.run([x.float().cpu() for x in case.inputs((20,))], (20,))


@every_case
def test_the_kernels_come_first_where_they_can(case: Case) -> None:
    assert next(iter(case.forms)) == "triton"
