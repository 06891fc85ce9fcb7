"""The forms of WKV-7 against the recurrence in float64, in value and in every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import wkv7 as operator
from components.kernels.wkv7 import wkv7, wkv7_step

FORMS = [name for name in operator.FORMS if name not in ("triton", "fla")]  # these have tests of their own
FAST = [name for name in FORMS if name != "reference"]
EXACT = [name for name in FORMS if name != "cpu"]  # those that take float64
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
FORM_AND_DTYPE = [(form, dtype) for form in FAST for dtype in TOLERANCE if form in EXACT or dtype is not torch.float64]
LENGTHS = [(1,), (15,), (16,), (17,), (63,), (65,), (4097,), (3, 1, 40), (1, 1, 1), tuple(range(64, 0, -1))]
# log-decays: a model's, close to none, and from e^-1e-4 to e^-50 side by side
REGIMES = {"model": (-0.6065, -2e-4), "near one": (-1e-3, -1e-4), "mixed": (-50.0, -1e-4)}
NAMES = ("r", "w", "k", "v", "a", "b", "state")


def inputs(lengths: tuple[int, ...], width: int = 32, values: int | None = None, regime: str = "model") -> list[Tensor]:
    """r, w, k, v, a, b, state in float64, representable in float32; transitions that do not grow, like a model's."""
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    heads, values = 2, values or width
    r, w, k, a, gate = (torch.randn(sum(lengths), heads, width, generator=generator) for _ in range(5))
    v = torch.randn(sum(lengths), heads, values, generator=generator)
    state = torch.randn(len(lengths), heads, width, values, generator=generator)
    low, high = REGIMES[regime]
    w = -torch.exp(math.log(-low) + math.log(high / low) * w.sigmoid())  # evenly spread on a logarithmic scale
    a = -torch.nn.functional.normalize(a, dim=-1)
    return [x.double() for x in (r, w, k, v, a, -a * gate.sigmoid(), state)]


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def as_matrices(tensors: list[Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Each position a whole transition matrix, diag(exp w) + b aᵀ, applied to each sequence by itself."""
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


def results(tensors: list[Tensor], lengths: tuple[int, ...], form: str) -> list[Tensor]:
    """Output, final state, and the gradients of all seven inputs through both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    if form == "matrices":
        y, after = as_matrices(leaves, lengths)
    else:
        *row, state = leaves
        y, after = wkv7(*row, bounds(lengths), state, form=form)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


@cache
def truth(lengths: tuple[int, ...], width: int = 32, regime: str = "model") -> list[Tensor]:
    """The results of the recurrence in float64."""
    return results(inputs(lengths, width, regime=regime), lengths, "reference")


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, got, want in zip(("y", "final state", *NAMES), actual, expected, strict=True):
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda x: str(x)[:12])
@pytest.mark.parametrize(("form", "dtype"), FORM_AND_DTYPE)
def test_a_form_equals_the_recurrence(form: str, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    tensors = [x.to(dtype) for x in inputs(lengths)]
    assert_equal(results(tensors, lengths, form), truth(lengths), TOLERANCE[dtype])


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("form", "dtype"), FORM_AND_DTYPE)
def test_a_form_is_stable_for_every_decay(form: str, dtype: torch.dtype, regime: str, width: int) -> None:
    tensors = [x.to(dtype) for x in inputs((50, 23), width, regime=regime)]
    assert_equal(results(tensors, (50, 23), form), truth((50, 23), width, regime), TOLERANCE[dtype])


@pytest.mark.parametrize(("form", "dtype"), FORM_AND_DTYPE)
def test_keys_and_values_may_differ_in_width(form: str, dtype: torch.dtype) -> None:
    tensors = inputs((19, 4), 16, values=24)
    expected = results(tensors, (19, 4), "reference")
    assert_equal(results([x.to(dtype) for x in tensors], (19, 4), form), expected, TOLERANCE[dtype])


def test_the_gradients_of_chunks_are_those_of_finite_differences() -> None:
    leaves = [x.requires_grad_() for x in inputs((19, 2), 3, values=2)]

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return wkv7(*tensors[:6], bounds((19, 2)), tensors[6], form="chunk")

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("part", [0, 1], ids=["output", "final state"])
def test_each_result_alone_carries_gradients(form: str, part: int) -> None:
    gradients = []
    for name, dtype in ((form, torch.float32), ("reference", torch.float64)):
        *row, state = leaves = [x.to(dtype).requires_grad_() for x in inputs((20, 3))]
        out = wkv7(*row, bounds((20, 3)), state, form=name)[part]
        gradients.append(torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True))
    for name, got, want in zip(NAMES, *gradients, strict=True):
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max(), name


def test_bfloat16_inputs_are_computed_wide() -> None:
    tensors = [x.bfloat16() for x in inputs((33, 7))]
    narrow = results(
        [x.float() if n in ("w", "state") else x for n, x in zip(NAMES, tensors, strict=True)], (33, 7), "cpu"
    )
    wide = results([x.double() for x in tensors], (33, 7), "reference")
    assert narrow[0].dtype is torch.bfloat16 and narrow[1].dtype is torch.float32
    assert (narrow[1].double() - wide[1]).abs().max() <= 3e-6 * wide[1].abs().max()
    assert_equal(narrow, wide, 2**-7)


@pytest.mark.parametrize("lengths", [(1,), (20,), (3, 1, 11)], ids=str)
def test_the_recurrence_equals_products_of_transition_matrices(lengths: tuple[int, ...]) -> None:
    tensors = inputs(lengths, 8, values=5)
    torch.testing.assert_close(results(tensors, lengths, "reference"), results(tensors, lengths, "matrices"))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_step_of_several_sequences_equals_the_recurrence(dtype: torch.dtype) -> None:
    tensors = inputs((1, 1, 1))
    y, after = wkv7_step(*(x.to(dtype) for x in tensors))
    want_y, want_after = wkv7(*tensors[:6], bounds((1, 1, 1)), tensors[6], form="reference")
    assert y.dtype is after.dtype is dtype
    torch.testing.assert_close(y.double(), want_y, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(after.double(), want_after, rtol=0, atol=TOLERANCE[dtype])


def test_a_step_refuses_what_does_not_fit() -> None:
    *tensors, state = (x.float() for x in inputs((1, 1, 1)))
    with pytest.raises(AuroraError, match=r"wkv7_step: state is \[3, 2, 32, 16\]"):
        wkv7_step(*tensors, state[..., :16])


def test_the_gated_delta_rule_is_a_case_of_it() -> None:
    r, _, k, v, _, _, state = inputs((9,), 8, values=6)
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


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_a_row_continued_from_its_state_equals_the_whole(form: str) -> None:
    *row, state = (x.float() for x in inputs((41,)))
    whole, end = wkv7(*row, bounds((41,)), state, form=form)
    pieces = []
    for part in (slice(0, 18), slice(18, 19), slice(19, 41)):
        y, state = wkv7(*(x[part] for x in row), bounds((part.stop - part.start,)), state, form=form)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-5)


def test_a_state_carried_far_does_not_drift() -> None:
    generator = torch.Generator().manual_seed(0)
    r, k, v, w, a = torch.randn(5, 1 << 18, 1, 8, generator=generator)
    w, a = -torch.exp(2 * w.sigmoid() - 9.2), torch.nn.functional.normalize(a, dim=-1)
    state, row = None, list(zip(*(x.split(1 << 15) for x in (r, w, k, v, a, -a / 100)), strict=True))
    for part in row:
        y, state = wkv7(*part, bounds((1 << 15,)), state, form="cpu")
    want_y, want = wkv7(*(x.double() for x in (r, w, k, v, a, -a / 100)), bounds((1 << 18,)), form="chunk")
    assert (state - want).abs().max() <= 1e-5 * want.abs().max()
    assert (y - want_y[-len(y) :]).abs().max() <= 1e-5 * want_y.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_the_given_state_is_left_alone(form: str) -> None:
    *row, state = (x.float() for x in inputs((20, 1)))
    before = state.clone()
    wkv7(*row, bounds((20, 1)), state, form=form)
    assert torch.equal(state, before)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("k", lambda x: x[..., :16], r"wkv7: k is \[5, 2, 16\]; it has to be \[T = 5, H = 2, K = 32\]"),
        ("v", lambda x: x[:4], r"v is \[4, 2, 32\]; it has to be \[T = 5, H = 2, V = 32\]"),
        ("w", lambda x: x.long(), "w is of torch.int64"),
        ("state", lambda x: x.expand(2, -1, -1, -1), r"state is \[2, 2, 32, 32\]; .*S = 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name: str, wrong: Callable[[Tensor], Tensor], says: str) -> None:
    given = dict(zip(NAMES, inputs((5,)), strict=True))
    given[name] = wrong(given[name])
    with pytest.raises(AuroraError, match=says):
        wkv7(**given, cu_seqlens=bounds((5,)))
