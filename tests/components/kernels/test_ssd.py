"""The forms of the Mamba-2 operator against the recurrence in float64, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels.ssd import FORMS, ssd, ssd_step

FAST = [name for name in FORMS if name != "reference"]
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11}
LENGTHS = [(1,), (31,), (32,), (33,), (65,), (257,), (3, 1, 40), (1, 1, 1), (17, 64, 5, 1, 33, 16, 8)]
REGIMES = {"near one": (1e-5, 1e-3), "near zero": (10.0, 100.0), "mixed": (1e-4, 20.0)}  # of -a


def inputs(lengths: tuple[int, ...], regime: str = "mixed") -> list[Tensor]:
    """q, k, v, a, state in float64, representable in float32."""
    generator = torch.Generator().manual_seed(sum(lengths))
    positions, heads, keys, values = sum(lengths), 3, 16, 24
    shapes = [(positions, keys), (positions, keys), (positions, heads, values), (positions, heads)]
    tensors = [torch.randn(shape, generator=generator) for shape in [*shapes, (len(lengths), heads, keys, values)]]
    low, high = REGIMES[regime]
    tensors[3] = -low - (high - low) * torch.rand(shapes[3], generator=generator) ** 4
    return [x.double() for x in tensors]


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def results(tensors: list[Tensor], lengths: tuple[int, ...], form: str) -> list[Tensor]:
    """Output, final state, and the gradients of all five inputs through both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    q, k, v, a, state = leaves
    y, after = ssd(q, k, v, a, bounds(lengths), state, form=form)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, leaves)]


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("y", "final state", "dq", "dk", "dv", "da", "dstate")
    for name, got, want in zip(names, actual, expected, strict=True):
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("form", FAST)
def test_a_form_equals_the_recurrence(form: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = inputs(lengths)
    expected = results(tensors, lengths, "reference")
    assert_equal(results([x.to(dtype) for x in tensors], lengths, form), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("form", FAST)
def test_a_form_is_stable_for_every_decay(form: str, regime: str, dtype: torch.dtype) -> None:
    tensors = inputs((50, 23), regime)
    expected = results(tensors, (50, 23), "reference")
    assert_equal(results([x.to(dtype) for x in tensors], (50, 23), form), expected, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_a_row_continued_from_its_state_equals_the_whole(form: str) -> None:
    q, k, v, a, state = inputs((61,))
    whole, end = ssd(q, k, v, a, bounds((61,)), state, form=form)
    pieces = []
    for part in (slice(0, 38), slice(38, 39), slice(39, 61)):
        cut = bounds((part.stop - part.start,))
        y, state = ssd(q[part], k[part], v[part], a[part], cut, state, form=form)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(state, end)


def test_a_step_of_several_sequences_equals_the_recurrence() -> None:
    q, k, v, a, state = inputs((1, 1, 1))
    got = ssd_step(q, k, v, a, state)
    want = ssd(q, k, v, a, bounds((1, 1, 1)), state, form="reference")
    torch.testing.assert_close(got, want)


def test_an_unknown_form_is_refused_with_the_known_ones() -> None:
    q, k, v, a, _ = inputs((5,))
    with pytest.raises(AuroraError, match="auto, chunk, reference"):
        ssd(q, k, v, a, bounds((5,)), form="scan")
