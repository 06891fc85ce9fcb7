"""The forms of WKV-7 against the recurrence in float64, in value and in every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import wkv7 as operator
from components.kernels.wkv7 import wkv7, wkv7_step

FORMS = [name for name in operator.FORMS if name not in ("triton", "fla")]  # these have tests of their own
NAMES = ("r", "w", "k", "v", "a", "b", "state")


def inputs(lengths: tuple[int, ...], width: int = 32, values: int | None = None) -> list[Tensor]:
    """r, w, k, v, a, b, state in float64, representable in float32; transitions that do not grow, like a model's."""
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    heads, values = 2, values or width
    r, w, k, a, gate = (torch.randn(sum(lengths), heads, width, generator=generator) for _ in range(5))
    v = torch.randn(sum(lengths), heads, values, generator=generator)
    state = torch.randn(len(lengths), heads, width, values, generator=generator)
    w = -(2e-4 + 0.6 * w.sigmoid())
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


@pytest.mark.parametrize("lengths", [(1,), (20,), (3, 1, 11)], ids=str)
def test_the_recurrence_equals_products_of_transition_matrices(lengths: tuple[int, ...]) -> None:
    tensors = inputs(lengths, 8, values=5)
    torch.testing.assert_close(results(tensors, lengths, "reference"), results(tensors, lengths, "matrices"))


def test_a_step_of_several_sequences_equals_the_recurrence() -> None:
    tensors = inputs((1, 1, 1))
    y, after = wkv7_step(*tensors)
    want_y, want_after = wkv7(*tensors[:6], bounds((1, 1, 1)), tensors[6], form="reference")
    torch.testing.assert_close(y, want_y)
    torch.testing.assert_close(after, want_after)


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
    *row, state = inputs((41,))
    whole, end = wkv7(*row, bounds((41,)), state, form=form)
    pieces = []
    for part in (slice(0, 18), slice(18, 19), slice(19, 41)):
        y, state = wkv7(*(x[part] for x in row), bounds((part.stop - part.start,)), state, form=form)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("form", FORMS)
def test_the_given_state_is_left_alone(form: str) -> None:
    *row, state = inputs((20, 1))
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
