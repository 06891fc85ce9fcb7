"""The forms of WKV-6 and WKV-7 against their recurrences in float64, in value and in every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import wkv6 as wkv6_module
from components.kernels import wkv7 as wkv7_module
from components.kernels.wkv6 import wkv6
from components.kernels.wkv7 import wkv7

LENGTHS = [(1,), (15,), (16,), (17,), (63,), (65,), (4097,), (3, 1, 40), (1, 1, 1), tuple(range(64, 0, -1))]


@dataclass(frozen=True, eq=False)
class Kernel:
    """One of the operators; its inputs are in float64, representable in float32."""

    name: str
    module: ModuleType
    arguments: tuple[str, ...]  # in order, the state last
    inputs: Callable[..., list[Tensor]]
    regimes: Mapping[str, tuple[float, float]]
    tolerance: Mapping[torch.dtype, float]
    magnified: float  # how much more rounding a gradient may have for decays of every size
    close: float  # absolute tolerance in float32, where a row is cut

    @property
    def forms(self) -> list[str]:
        # the others have tests of their own
        return [name for name in self.module.FORMS if name not in ("triton", "fla")]

    def __call__(self, tensors: list[Tensor], lengths: tuple[int, ...], form: str) -> tuple[Tensor, Tensor]:
        *row, state = tensors
        return getattr(self.module, self.name)(*row, bounds(lengths), state, form=form)

    def step(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return getattr(self.module, f"{self.name}_step")(*tensors)

    def part(self, tensors: list[Tensor], part: slice) -> list[Tensor]:
        """Some positions of a row of one sequence; the bonus of WKV-6 has none, and the state is that before."""
        return [x if name in ("bonus", "state") else x[part]
                for name, x in zip(self.arguments, tensors, strict=True)]

    def __repr__(self) -> str:
        return self.name


def wkv6_inputs(lengths: tuple[int, ...], width: int = 32, values: int | None = None, regime: str = "mixed"
                ) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    positions, heads, values = sum(lengths), 2, values or width
    shapes = [(positions, heads, width)] * 2 + [(positions, heads, values), (positions, heads, width)]
    shapes += [(heads, width), (len(lengths), heads, width, values)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    low, high = WKV6_REGIMES[regime]
    tensors[3] = low + (high - low) * torch.rand(shapes[3], generator=generator)
    return [x.double() for x in tensors]


def wkv7_inputs(lengths: tuple[int, ...], width: int = 32, values: int | None = None, regime: str = "model"
                ) -> list[Tensor]:
    """Transitions that do not grow, like a model's."""
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    heads, values = 2, values or width
    r, w, k, a, gate = (torch.randn(sum(lengths), heads, width, generator=generator) for _ in range(5))
    v = torch.randn(sum(lengths), heads, values, generator=generator)
    state = torch.randn(len(lengths), heads, width, values, generator=generator)
    low, high = WKV7_REGIMES[regime]
    w = -torch.exp(math.log(-low) + math.log(high / low) * w.sigmoid())  # evenly spread on a logarithmic scale
    a = -torch.nn.functional.normalize(a, dim=-1)
    return [x.double() for x in (r, w, k, v, a, -a * gate.sigmoid(), state)]


# log(-log(decay)): decays from e^-1e-4 to e^-50; sixteen of those "between" are about 2^-64, where the CPU's kernel
# changes its way from key to key
WKV6_REGIMES = {"near one": (-9.3, -7.0), "between": (0.5, 1.45), "near zero": (1.5, 3.9), "mixed": (-9.3, 3.9)}
# log-decays: a model's, close to none, and from e^-1e-4 to e^-50 side by side
WKV7_REGIMES = {"model": (-0.6065, -2e-4), "near one": (-1e-3, -1e-4), "mixed": (-50.0, -1e-4)}
KERNELS = [
    # w's gradient is a difference times the log-decay, which magnifies its rounding by up to 20
    Kernel("wkv6", wkv6_module, ("r", "k", "v", "w", "bonus", "state"), wkv6_inputs, WKV6_REGIMES,
           {torch.float32: 3e-5, torch.float64: 1e-11}, magnified=5, close=1e-4),
    Kernel("wkv7", wkv7_module, ("r", "w", "k", "v", "a", "b", "state"), wkv7_inputs, WKV7_REGIMES,
           {torch.float32: 1e-5, torch.float64: 1e-11}, magnified=1, close=1e-5),
]
DTYPES = (torch.float32, torch.float64)
FORMS = [(kernel, form) for kernel in KERNELS for form in kernel.forms]
TYPED = [(kernel, form, dtype) for kernel, form in FORMS for dtype in DTYPES if form != "cpu" or dtype is DTYPES[0]]
FAST = [(kernel, form, dtype) for kernel, form, dtype in TYPED if form != "reference"]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def with_gradients(compute: Callable[..., tuple[Tensor, Tensor]], tensors: list[Tensor], *more: Any) -> list[Tensor]:
    """Output, final state, and the gradients of all inputs through both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    y, after = compute(leaves, *more)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


@cache
def truth(kernel: Kernel, lengths: tuple[int, ...], width: int, regime: str) -> list[Tensor]:
    """The results of the recurrence in float64."""
    return with_gradients(kernel, kernel.inputs(lengths, width, regime=regime), lengths, "reference")


def assert_equal(kernel: Kernel, actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("y", "final state", *(f"d{name}" for name in kernel.arguments))
    for name, got, want in zip(names, actual, expected, strict=True):
        # inputs are of size one, so where all of a gradient is below that, rounding is not
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda x: str(x)[:12])
@pytest.mark.parametrize(("kernel", "form", "dtype"), FAST, ids=str)
def test_a_form_equals_the_recurrence(kernel: Kernel, form: str, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    tensors = [x.to(dtype) for x in kernel.inputs(lengths)]
    regime = "mixed" if kernel.name == "wkv6" else "model"
    assert_equal(kernel, with_gradients(kernel, tensors, lengths, form), truth(kernel, lengths, 32, regime),
                 kernel.tolerance[dtype])


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize(("kernel", "form", "dtype", "regime"),
                         [(*one, regime) for one in FAST for regime in one[0].regimes], ids=str)
def test_a_form_is_stable_for_every_decay(kernel: Kernel, form: str, dtype: torch.dtype, regime: str, width: int
                                          ) -> None:
    tensors = [x.to(dtype) for x in kernel.inputs((50, 23), width, regime=regime)]
    assert_equal(kernel, with_gradients(kernel, tensors, (50, 23), form), truth(kernel, (50, 23), width, regime),
                 kernel.magnified * kernel.tolerance[dtype])


@pytest.mark.parametrize("regime", WKV6_REGIMES)
@torch.no_grad()
def test_the_fused_recurrence_of_wkv6_rounds_as_the_plain_one_does(regime: str) -> None:
    given, lengths = wkv6_inputs((1000,), 64, regime=regime), bounds((1000,))
    expected = wkv6(*given[:5], lengths, given[5], form="reference")
    found = wkv6(*(x.float() for x in given[:5]), lengths, given[5].float(), form="cpu")
    for actual, wanted in zip(found, expected, strict=True):
        assert actual is not None and wanted is not None
        assert (actual.double() - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize(("kernel", "form", "dtype"), FAST, ids=str)
def test_keys_and_values_may_differ_in_width(kernel: Kernel, form: str, dtype: torch.dtype) -> None:
    tensors = kernel.inputs((19, 4), 16, values=24)
    expected = with_gradients(kernel, tensors, (19, 4), "reference")
    actual = with_gradients(kernel, [x.to(dtype) for x in tensors], (19, 4), form)
    assert_equal(kernel, actual, expected, kernel.tolerance[dtype])


@pytest.mark.parametrize(("kernel", "form"), [one[:2] for one in FAST if one[2] is torch.float64], ids=str)
def test_the_gradients_are_those_of_finite_differences(kernel: Kernel, form: str) -> None:
    tensors = kernel.inputs((19, 2), 3, values=2)
    if kernel.name == "wkv6":
        tensors[3] = tensors[3] / 4
    leaves = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *given: kernel([*given], (19, 2), form), leaves, fast_mode=True)


@pytest.mark.parametrize("part", [0, 1], ids=["output", "final state"])
@pytest.mark.parametrize(("kernel", "form", "dtype"), FAST, ids=str)
def test_each_result_alone_carries_gradients(kernel: Kernel, form: str, dtype: torch.dtype, part: int) -> None:
    gradients = []
    for name, kind in ((form, dtype), ("reference", torch.float64)):
        leaves = [x.to(kind).requires_grad_() for x in kernel.inputs((20, 3))]
        out = kernel(leaves, (20, 3), name)[part]
        gradients.append(torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True))
    for name, got, want in zip(kernel.arguments, *gradients, strict=True):
        assert (got.double() - want).abs().max() <= kernel.tolerance[dtype] * want.abs().max(), name


@pytest.mark.parametrize(("kernel", "form", "dtype"), [*TYPED, *((kernel, "auto", dtype) for kernel in KERNELS
                                                                for dtype in DTYPES)], ids=str)
def test_a_row_continued_from_its_state_equals_the_whole(kernel: Kernel, form: str, dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in kernel.inputs((41,))]
    whole, end = kernel(tensors, (41,), form)
    pieces, state = [], tensors[-1]
    for part in (slice(0, 18), slice(18, 19), slice(19, 41)):
        y, state = kernel([*kernel.part(tensors, part)[:-1], state], (part.stop - part.start,), form)
        pieces.append(y)
    close = {"rtol": 1e-7, "atol": 1e-7} if dtype is torch.float64 else {"rtol": 1e-4, "atol": kernel.close}
    torch.testing.assert_close(torch.cat(pieces), whole, **close)
    torch.testing.assert_close(state, end, **close)


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_of_several_sequences_equals_the_recurrence(kernel: Kernel, dtype: torch.dtype) -> None:
    tensors = kernel.inputs((1, 1, 1))
    y, after = kernel.step([x.to(dtype) for x in tensors])
    want_y, want_after = kernel(tensors, (1, 1, 1), "reference")
    assert y.dtype is after.dtype is dtype
    torch.testing.assert_close(y.double(), want_y, rtol=0, atol=kernel.tolerance[dtype])
    torch.testing.assert_close(after.double(), want_after, rtol=0, atol=kernel.tolerance[dtype])


@every_kernel
def test_a_step_refuses_what_does_not_fit(kernel: Kernel) -> None:
    *tensors, state = (x.float() for x in kernel.inputs((1, 1, 1)))
    with pytest.raises(AuroraError, match=rf"{kernel.name}_step: state is \[3, 2, 32, 16\]"):
        kernel.step([*tensors, state[..., :16]])


def slow_decays(kernel: Kernel, length: int) -> list[Tensor]:
    """A row without a state, one head of width 8, decays from e^-1e-4 on."""
    generator = torch.Generator().manual_seed(0)
    if kernel.name == "wkv6":
        r, k, v, w = torch.randn(4, length, 1, 8, generator=generator)
        return [r, k, v, 2 * w.sigmoid() - 9.2, torch.randn(1, 8, generator=generator)]
    r, k, v, w, a = torch.randn(5, length, 1, 8, generator=generator)
    w, a = -torch.exp(2 * w.sigmoid() - 9.2), torch.nn.functional.normalize(a, dim=-1)
    return [r, w, k, v, a, -a / 100]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "length"), [(KERNELS[0], 1 << 20), (KERNELS[1], 1 << 18)], ids=str)
def test_a_state_carried_far_does_not_drift(kernel: Kernel, length: int) -> None:
    row = slow_decays(kernel, length)
    state, piece = torch.zeros(1, 1, 8, 8), length // 8
    for start in range(0, length, piece):
        y, state = kernel(kernel.part([*row, state], slice(start, start + piece)), (piece,), "cpu")
    want_y, want = kernel([x.double() for x in (*row, torch.zeros(1, 1, 8, 8))], (length,), "chunk")
    assert (state - want).abs().max() <= 1e-5 * want.abs().max()
    assert (y - want_y[-len(y) :]).abs().max() <= 1e-5 * want_y.abs().max()


@pytest.mark.parametrize("form", KERNELS[0].forms)
def test_a_decay_of_nothing_has_finite_gradients_in_wkv6(form: str) -> None:
    tensors = [x.float() for x in wkv6_inputs((20,))]
    tensors[3] = torch.full_like(tensors[3], 95.0)
    assert all(x.isfinite().all() for x in with_gradients(KERNELS[0], tensors, (20,), form))


@pytest.mark.parametrize(("kernel", "form", "dtype"), TYPED, ids=str)
def test_the_given_state_is_left_alone(kernel: Kernel, form: str, dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in kernel.inputs((20, 1))]
    before = tensors[-1].clone()
    kernel(tensors, (20, 1), form)
    assert torch.equal(tensors[-1], before)


@pytest.mark.parametrize(
    ("kernel", "form", "wide", "tolerance"),
    [(KERNELS[0], "chunk", ("state",), 3e-5), (KERNELS[1], "cpu", ("w", "state"), 3e-6)], ids=str,
)
def test_bfloat16_inputs_are_computed_wide(kernel: Kernel, form: str, wide: tuple[str, ...], tolerance: float) -> None:
    tensors = [x.bfloat16() for x in kernel.inputs((33, 7))]
    given = [x.float() if name in wide else x for name, x in zip(kernel.arguments, tensors, strict=True)]
    narrow = with_gradients(kernel, given, (33, 7), form)
    expected = with_gradients(kernel, [x.double() for x in tensors], (33, 7), "reference")
    assert narrow[0].dtype is torch.bfloat16 and narrow[1].dtype is torch.float32
    assert (narrow[1].double() - expected[1]).abs().max() <= tolerance * expected[1].abs().max()
    assert_equal(kernel, narrow, expected, 2**-7)


@every_kernel
@pytest.mark.parametrize(("cut", "says"), [([0, 3, 3, 5], "empty"), ([0], "empty"), ([0, 4], "0 to 4")])
def test_bounds_that_do_not_fit_are_refused(kernel: Kernel, cut: list[int], says: str) -> None:
    *row, _ = kernel.inputs((5,))
    with pytest.raises(ValueError, match=says):
        getattr(kernel.module, kernel.name)(*row, torch.tensor(cut))


@every_kernel
@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("k", lambda x: x[..., :16], r"k is \[5, 2, 16\]; it has to be \[T = 5, H = 2, K = 32\]"),
        ("v", lambda x: x[:4], r"v is \[4, 2, 32\]; it has to be \[T = 5, H = 2, V = 32\]"),
        ("w", lambda x: x.long(), "w is of torch.int64"),
        ("state", lambda x: x.expand(2, -1, -1, -1), r"state is \[2, 2, 32, 32\]; .*S = 1"),
        ("cu_seqlens", lambda x: x.float(), r"cu_seqlens is \[2\] of torch.float32; it has to be"),
        ("bonus", lambda x: x.flatten(), r"bonus is \[64\]; it has to be \[H = 2, K = 32\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(kernel: Kernel, name: str, wrong: Callable[[Tensor], Tensor], says: str
                                            ) -> None:
    given = dict(zip(kernel.arguments, kernel.inputs((5,)), strict=True)) | {"cu_seqlens": bounds((5,))}
    if name not in given:
        pytest.skip(f"{kernel.name} takes no {name}")
    given[name] = wrong(given[name])
    with pytest.raises(AuroraError, match=says if name == "cu_seqlens" else f"{kernel.name}: {says}"):
        getattr(kernel.module, kernel.name)(**given)


@every_kernel
def test_an_unknown_form_is_refused_with_the_known_ones(kernel: Kernel) -> None:
    with pytest.raises(AuroraError, match=r"auto, .*chunk, .*reference"):
        kernel(kernel.inputs((5,)), (5,), "chunked")


def as_matrices(tensors: list[Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """WKV-7 with a whole transition matrix per position, diag(exp w) + b aᵀ, applied to each sequence by itself."""
    r, w, k, v, a, b, state = tensors
    transition = torch.diag_embed(w.exp()) + b.unsqueeze(-1) * a.unsqueeze(-2)
    outputs, states = [], []
    for sequence, (start, end) in enumerate(zip(bounds(lengths)[:-1], bounds(lengths)[1:], strict=True)):
        s = state[sequence]
        for t in range(start, end):
            s = transition[t] @ s + torch.einsum("hk,hv->hkv", k[t], v[t])
            outputs.append(torch.einsum("hk,hkv->hv", r[t], s))
        states.append(s)
    return torch.stack(outputs), torch.stack(states)


@pytest.mark.parametrize("lengths", [(1,), (20,), (3, 1, 11)], ids=str)
def test_the_recurrence_of_wkv7_equals_products_of_transition_matrices(lengths: tuple[int, ...]) -> None:
    tensors = wkv7_inputs(lengths, 8, values=5)
    actual = with_gradients(KERNELS[1], tensors, lengths, "reference")
    torch.testing.assert_close(actual, with_gradients(as_matrices, tensors, lengths))


def test_the_gated_delta_rule_is_a_case_of_wkv7() -> None:
    r, _, k, v, _, _, state = wkv7_inputs((9,), 8, values=6)
    generator = torch.Generator().manual_seed(3)
    alpha, beta = torch.rand(2, 9, 2, 1, generator=generator, dtype=torch.float64)
    k = torch.nn.functional.normalize(k, dim=-1)
    s, outputs = state[0], []
    for t in range(9):
        old = torch.einsum("hk,hkv->hv", k[t], alpha[t].unsqueeze(-1) * s)
        s = alpha[t].unsqueeze(-1) * s + torch.einsum("hk,hv->hkv", k[t], beta[t] * (v[t] - old))
        outputs.append(torch.einsum("hk,hkv->hv", r[t], s))
    y, after = wkv7(r, alpha.log().expand_as(k), beta * k, v, -k, alpha * beta * k, bounds((9,)), state)
    torch.testing.assert_close(y, torch.stack(outputs))
    torch.testing.assert_close(after, s.unsqueeze(0))
