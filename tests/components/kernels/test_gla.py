"""Gated linear attention through WKV-6 against its own recurrence in float64, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components.kernels.gla import gla, gla_step
from components.kernels.wkv6 import FORMS

HEADS, KEYS, VALUES = 3, 16, 32
LENGTHS = [(1,), (17,), (33,), (3, 1, 40), (1, 1, 1)]
REGIMES = {"as trained": (0.0, 0.5), "near one": (1e-8, 1e-5), "near zero": (1.0, 15.0), "never": (0.0, 0.0)}  # of -a
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-11}


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """arXiv 2312.06635, eq. 3, one position after the other: S_t = (α_tᵀ 1) ⊙ S_{t-1} + k_tᵀ v_t, o_t = q_t S_t."""
    rows, states, t = [], [], 0
    for sequence, length in enumerate(lengths):
        s = state[sequence]
        for _ in range(length):
            s = torch.exp(a[t])[:, :, None] * s + torch.einsum("hk,hv->hkv", k[t], v[t])
            rows.append(torch.einsum("hk,hkv->hv", q[t], s))
            t += 1
        states.append(s)
    return torch.stack(rows), torch.stack(states)


def inputs(lengths: tuple[int, ...], regime: str) -> list[Tensor]:
    """q, k, v, a, state in float64, representable in float32."""
    generator = torch.Generator().manual_seed(sum(lengths))
    low, high = REGIMES[regime]
    q, k, a = (torch.randn(sum(lengths), HEADS, KEYS, generator=generator) for _ in range(3))
    v = torch.randn(sum(lengths), HEADS, VALUES, generator=generator)
    state = torch.randn(len(lengths), HEADS, KEYS, VALUES, generator=generator)
    return [x.double() for x in (q, k, v, -(low + (high - low) * torch.sigmoid(a)), state)]


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def with_gradients(y: Tensor, after: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_equals_the_recurrence(lengths: tuple[int, ...], regime: str, dtype: torch.dtype) -> None:
    tensors = inputs(lengths, regime)
    exact = [x.clone().requires_grad_() for x in tensors]
    expected = with_gradients(*recurrence(*exact[:4], lengths, exact[4]), exact)
    leaves = [x.to(dtype).requires_grad_() for x in tensors]
    actual = with_gradients(*gla(*leaves[:4], bounds(lengths), leaves[4]), leaves)
    for name, got, want in zip(("y", "state", "dq", "dk", "dv", "da", "dstate"), actual, expected, strict=True):
        if regime == "never" and name == "da":
            continue  # at the end of its range a decay is held; what matters is that its gradient is a number
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"
    assert all(x.isfinite().all() for x in actual)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_wkv6_is_a_form_of_it(form: str) -> None:
    if FORMS[form].unfit(*(x.float() for x in inputs((9,), "as trained")[1:3])) is not None:
        pytest.skip("this form cannot run here")
    q, k, v, a, state = (x.float() for x in inputs((20, 7), "as trained"))
    expected, end = recurrence(q, k, v, a, (20, 7), state)
    y, after = gla(q, k, v, a, bounds((20, 7)), state, form=form)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regime", REGIMES)
def test_steps_equal_the_recurrence(regime: str) -> None:
    q, k, v, a, state = inputs((6,), regime)
    expected, end = recurrence(q, k, v, a, (6,), state)
    for t in range(6):
        y, state = gla_step(q[t, None], k[t, None], v[t, None], a[t, None], state)
        torch.testing.assert_close(y[0], expected[t])
    torch.testing.assert_close(state, end)


def test_narrow_inputs_keep_the_decay_wide() -> None:
    q, k, v, a, state = inputs((40,), "near one")
    narrow = [x.bfloat16() for x in (q, k, v)]
    y, after = gla(*narrow, a.float(), bounds((40,)), state.float())
    expected, end = recurrence(*(x.double() for x in narrow), a, (40,), state)
    assert y.dtype is torch.bfloat16 and after.dtype is torch.float32
    assert (y.double() - expected).abs().max() <= 2e-2 * expected.abs().max()
    torch.testing.assert_close(after.double(), end, rtol=1e-5, atol=1e-4)
