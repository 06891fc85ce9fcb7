"""The gated delta rule through WKV-7 against the implementation of `transformers`, in value and in every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from components.kernels.gated_delta import gated_delta, gated_delta_step
from components.kernels.wkv7 import FORMS

HEADS, KEYS, VALUES = 3, 16, 32
LENGTHS = [(1,), (17,), (70,), (3, 1, 40)]
REGIMES = {"as trained": (1e-3, 2.0), "near one": (1e-8, 1e-5), "near zero": (2.0, 30.0), "never": (0.0, 0.0)}  # of -g


def inputs(lengths: tuple[int, ...], regime: str = "as trained") -> list[Tensor]:
    """q and k of length one, v, g, strength, state."""
    generator = torch.Generator().manual_seed(sum(lengths))
    positions = sum(lengths)
    low, high = REGIMES[regime]
    q, k = (torch.randn(positions, HEADS, KEYS, generator=generator) for _ in range(2))
    v = torch.randn(positions, HEADS, VALUES, generator=generator)
    g = -low - (high - low) * torch.rand(positions, HEADS, generator=generator)
    strength = torch.rand(positions, HEADS, generator=generator)
    state = torch.randn(len(lengths), HEADS, KEYS, VALUES, generator=generator)
    return [q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v, g, strength, state]


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def theirs(rule: Any, tensors: list[Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Each sequence by itself; they divide the query by the root of the key width."""
    q, k, v, g, strength, state = tensors
    rows, states, start = [], [], 0
    for sequence, length in enumerate(lengths):
        here = slice(start, start + length)
        y, after = rule(q[None, here] * KEYS**0.5, k[None, here], v[None, here], g=g[None, here],
                        beta=strength[None, here], initial_state=state[None, sequence], output_final_state=True)
        rows.append(y[0])
        states.append(after[0])
        start += length
    return torch.cat(rows), torch.stack(states)


def with_gradients(y: Tensor, after: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("rule", [torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_equals_the_rule_of_transformers(lengths: tuple[int, ...], regime: str, rule: Any) -> None:
    tensors = inputs(lengths, regime)
    other = [x.clone().requires_grad_() for x in tensors]
    expected = with_gradients(*theirs(rule, other, lengths), other)
    leaves = [x.requires_grad_() for x in tensors]
    actual = with_gradients(*gated_delta(*leaves[:5], bounds(lengths), leaves[5]), leaves)
    names = ("y", "state", "dq", "dk", "dv", "dg", "dstrength", "dstate")
    for name, got, want in zip(names, actual, expected, strict=True):
        error = (got - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= 5e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_wkv7_is_a_form_of_it(form: str) -> None:
    tensors = inputs((20, 7))
    if FORMS[form].unfit(*tensors[1:3]) is not None:
        pytest.skip("this form cannot run here")
    expected, end = theirs(torch_recurrent_gated_delta_rule, tensors, (20, 7))
    y, after = gated_delta(*tensors[:5], bounds((20, 7)), tensors[5], form=form)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, end, rtol=1e-4, atol=1e-5)


def test_steps_equal_the_rule_of_transformers() -> None:
    tensors = inputs((6,))
    expected, end = theirs(torch_recurrent_gated_delta_rule, tensors, (6,))
    state = tensors[5]
    for t in range(6):
        y, state = gated_delta_step(*(x[t, None] for x in tensors[:5]), state)
        torch.testing.assert_close(y[0], expected[t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-5)


def test_narrow_inputs_keep_the_decay_and_the_state_wide() -> None:
    q, k, v, g, strength, state = inputs((40,), "near one")
    narrow = [x.bfloat16() for x in (q, k, v)]
    y, after = gated_delta(*narrow, g, strength, bounds((40,)), state)
    expected, end = theirs(torch_recurrent_gated_delta_rule, [*(x.float() for x in narrow), g, strength, state], (40,))
    assert y.dtype is torch.bfloat16 and after.dtype is torch.float32
    assert (y.float() - expected).abs().max() <= 2e-2 * expected.abs().max()
    assert (after - end).abs().max() <= 2e-2 * end.abs().max()


def test_a_value_written_with_full_strength_is_read_back() -> None:
    _, k, v, g, _, state = inputs((1,))
    y, _ = gated_delta(k, k, v, g, torch.ones(1, HEADS), bounds((1,)), state)
    torch.testing.assert_close(y, v)
