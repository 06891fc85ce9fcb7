"""The forms of WKV-6 against the recurrence in float64, in value and in every gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import wkv6 as operator
from components.kernels.wkv6 import wkv6, wkv6_step

FORMS = [name for name in operator.FORMS if name not in ("triton", "fla")]  # these have tests of their own
FAST = [name for name in FORMS if name != "reference"]
EXACT = [name for name in FORMS if name != "cpu"]  # those that take float64
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-7, "atol": 1e-7}}
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11}
FORM_AND_DTYPE = [(form, dtype) for form in FAST for dtype in TOLERANCE if form in EXACT or dtype is not torch.float64]
LENGTHS = [(1,), (15,), (16,), (17,), (63,), (65,), (4097,), (3, 1, 40), (1, 1, 1), tuple(range(64, 0, -1))]
# log(-log(decay)): decays from e^-1e-4 to e^-50; sixteen of those "between" are about 2^-64, where the CPU's kernel
# changes its way from key to key
REGIMES = {"near one": (-9.3, -7.0), "between": (0.5, 1.45), "near zero": (1.5, 3.9), "mixed": (-9.3, 3.9)}


def inputs(lengths: tuple[int, ...], width: int = 32, regime: str = "mixed", values: int | None = None) -> list[Tensor]:
    """r, k, v, w, bonus, state in float64, representable in float32."""
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    positions, heads, values = sum(lengths), 2, values or width
    shapes = [(positions, heads, width)] * 2 + [(positions, heads, values), (positions, heads, width)]
    shapes += [(heads, width), (len(lengths), heads, width, values)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    low, high = REGIMES[regime]
    tensors[3] = low + (high - low) * torch.rand(shapes[3], generator=generator)
    return [x.double() for x in tensors]


def dtype_of(form: str) -> torch.dtype:
    """The widest that a form takes."""
    return torch.float64 if form in EXACT or form == "auto" else torch.float32


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def results(tensors: list[Tensor], lengths: tuple[int, ...], form: str) -> list[Tensor]:
    """Output, final state, and the gradients of all six inputs through both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    r, k, v, w, bonus, state = leaves
    y, after = wkv6(r, k, v, w, bonus, bounds(lengths), state, form=form)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


@cache
def truth(lengths: tuple[int, ...], width: int = 32, regime: str = "mixed") -> list[Tensor]:
    """The results of the recurrence in float64."""
    return results(inputs(lengths, width, regime), lengths, "reference")


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("y", "final state", "dr", "dk", "dv", "dw", "dbonus", "dstate")
    for name, got, want in zip(names, actual, expected, strict=True):
        # inputs are of size one, so where all of a gradient is below that, rounding is not
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda x: str(x)[:12])
@pytest.mark.parametrize(("form", "dtype"), FORM_AND_DTYPE)
def test_a_form_equals_the_recurrence(form: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in inputs(lengths)]
    assert_equal(results(tensors, lengths, form), truth(lengths), TOLERANCE[dtype])


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("form", "dtype"), FORM_AND_DTYPE)
def test_a_form_is_stable_for_every_decay(form: str, regime: str, width: int, dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in inputs((50, 23), width, regime)]
    # w's gradient is a difference times the log-decay, which magnifies its rounding by up to 20
    assert_equal(results(tensors, (50, 23), form), truth((50, 23), width, regime), 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("regime", REGIMES)
@torch.no_grad()
def test_the_fused_recurrence_rounds_as_the_plain_one_does(regime: str) -> None:
    given, lengths = inputs((1000,), 64, regime), bounds((1000,))
    expected = wkv6(*given[:5], lengths, given[5], form="reference")
    found = wkv6(*(x.float() for x in given[:5]), lengths, given[5].float(), form="cpu")
    for actual, wanted in zip(found, expected, strict=True):
        assert actual is not None and wanted is not None
        assert (actual.double() - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("form", FAST)
def test_keys_and_values_may_differ_in_width(form: str) -> None:
    tensors = inputs((19, 4), 16, values=24)
    expected = results(tensors, (19, 4), "reference")
    dtype = dtype_of(form)
    assert_equal(results([x.to(dtype) for x in tensors], (19, 4), form), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("form", EXACT[:-1])
def test_the_gradients_are_those_of_finite_differences(form: str) -> None:
    lengths = (19, 2)
    leaves = [x.requires_grad_() for x in inputs(lengths, 3, values=2)]
    leaves[3] = (leaves[3].detach() / 4).requires_grad_()

    def run(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return wkv6(r, k, v, w, bonus, bounds(lengths), state, form=form)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("part", [0, 1], ids=["output", "final state"])
def test_each_result_alone_carries_gradients(form: str, part: int) -> None:
    gradients = []
    for name in (form, "reference"):
        leaves = [x.to(dtype_of(form)).requires_grad_() for x in inputs((20, 3))]
        r, k, v, w, bonus, state = leaves
        out = wkv6(r, k, v, w, bonus, bounds((20, 3)), state, form=name)[part]
        gradients.append(torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*gradients, **CLOSE[dtype_of(form)])


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_a_row_continued_from_its_state_equals_the_whole(form: str) -> None:
    r, k, v, w, bonus, state = (x.to(dtype_of(form)) for x in inputs((41,)))
    whole, end = wkv6(r, k, v, w, bonus, bounds((41,)), state, form=form)
    pieces = []
    for part in (slice(0, 18), slice(18, 19), slice(19, 41)):
        cut = bounds((part.stop - part.start,))
        y, state = wkv6(r[part], k[part], v[part], w[part], bonus, cut, state, form=form)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole, **CLOSE[dtype_of(form)])
    torch.testing.assert_close(state, end, **CLOSE[dtype_of(form)])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_step_of_several_sequences_equals_the_recurrence(dtype: torch.dtype) -> None:
    tensors = inputs((1, 1, 1))
    y, after = wkv6_step(*(x.to(dtype) for x in tensors))
    want_y, want_after = wkv6(*tensors[:5], bounds((1, 1, 1)), tensors[5], form="reference")
    assert y.dtype is after.dtype is dtype
    torch.testing.assert_close(y.double(), want_y, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(after.double(), want_after, rtol=0, atol=TOLERANCE[dtype])


def test_a_step_refuses_what_does_not_fit() -> None:
    *tensors, state = (x.float() for x in inputs((1, 1, 1)))
    with pytest.raises(AuroraError, match=r"wkv6_step: state is \[3, 2, 32, 16\]"):
        wkv6_step(*tensors, state[..., :16])


def test_a_state_carried_over_a_million_positions_does_not_drift() -> None:
    generator = torch.Generator().manual_seed(0)
    r, k, v, w = torch.randn(4, 1 << 20, 1, 8, generator=generator)
    w, bonus = 2 * w.sigmoid() - 9.2, torch.randn(1, 8, generator=generator)  # decays from e^-1e-4 on
    state, row = None, list(zip(*(x.split(1 << 17) for x in (r, k, v, w)), strict=True))
    for part in row:
        y, state = wkv6(*part, bonus, bounds((1 << 17,)), state, form="cpu")
    want_y, want = wkv6(*(x.double() for x in (r, k, v, w, bonus)), bounds((1 << 20,)), form="chunk")
    assert (state - want).abs().max() <= 1e-5 * want.abs().max()
    assert (y - want_y[-len(y) :]).abs().max() <= 1e-5 * want_y.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_a_decay_of_nothing_has_finite_gradients(form: str) -> None:
    tensors = [x.float() for x in inputs((20,))]
    tensors[3] = torch.full_like(tensors[3], 95.0)
    assert all(x.isfinite().all() for x in results(tensors, (20,), form))


@pytest.mark.parametrize("form", FORMS)
def test_the_given_state_is_left_alone(form: str) -> None:
    r, k, v, w, bonus, state = (x.to(dtype_of(form)) for x in inputs((20, 1)))
    before = state.clone()
    wkv6(r, k, v, w, bonus, bounds((20, 1)), state, form=form)
    assert torch.equal(state, before)


def test_bfloat16_inputs_are_computed_wide() -> None:
    tensors = [x.bfloat16() for x in inputs((33, 7))]
    narrow = results([*tensors[:5], tensors[5].float()], (33, 7), "chunk")
    wide = results([x.double() for x in tensors], (33, 7), "reference")
    assert narrow[0].dtype is torch.bfloat16 and narrow[1].dtype is torch.float32
    assert (narrow[1].double() - wide[1]).abs().max() <= 3e-5 * wide[1].abs().max()


@pytest.mark.parametrize(("cut", "says"), [([0, 3, 3, 5], "empty"), ([0], "empty"), ([0, 4], "0 to 4")])
def test_bounds_that_do_not_fit_are_refused(cut: list[int], says: str) -> None:
    r, k, v, w, bonus, _ = inputs((5,))
    with pytest.raises(ValueError, match=says):
        wkv6(r, k, v, w, bonus, torch.tensor(cut))


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("k", lambda x: x[..., :16], r"wkv6: k is \[5, 2, 16\]; it has to be \[T = 5, H = 2, K = 32\]"),
        ("v", lambda x: x[:4], r"v is \[4, 2, 32\]; it has to be \[T = 5, H = 2, V = 32\]"),
        ("w", lambda x: x.long(), "w is of torch.int64"),
        ("bonus", lambda x: x.flatten(), r"bonus is \[64\]; it has to be \[H = 2, K = 32\]"),
        ("state", lambda x: x.expand(2, -1, -1, -1), r"state is \[2, 2, 32, 32\]; .*S = 1"),
        ("cu_seqlens", lambda x: x.float(), r"cu_seqlens is \[2\] of torch.float32; it has to be"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name: str, wrong: Callable[[Tensor], Tensor], says: str) -> None:
    given = dict(zip(("r", "k", "v", "w", "bonus", "state"), inputs((5,)), strict=True)) | {"cu_seqlens": bounds((5,))}
    given[name] = wrong(given[name])
    with pytest.raises(AuroraError, match=says):
        wkv6(**given)


def test_an_unknown_form_is_refused_with_the_known_ones() -> None:
    r, k, v, w, bonus, _ = inputs((5,))
    with pytest.raises(AuroraError, match=r"auto, .*chunk, .*reference"):
        wkv6(r, k, v, w, bonus, bounds((5,)), form="chunked")
