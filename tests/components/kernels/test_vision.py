"""What stands between a vision transformer's products: the compiled forms against torch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aurora.types import VisualTokens
from components.kernels._native import missing
from components.kernels.vision import absorb, gelu_tanh, match_pairs, mean_direction, reorder
from components.merge._groups import Absorption

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("count", [1, 16, 45, 9000])
def test_gelu_equals_its_definition(count: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 12, count).to(dtype)
    expected = F.gelu(x.double(), approximate="tanh")
    error = (gelu_tanh(x.clone()).double() - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() <= TOLERANCE[dtype]


def test_gelu_of_extremes() -> None:
    *finite, nothing = gelu_tanh(torch.tensor([0.0, -1e4, 1e30, torch.inf, torch.nan]))
    torch.testing.assert_close(torch.stack(finite), torch.tensor([0.0, 0.0, 1e30, torch.inf]))
    assert nothing.isnan()


def test_gelu_leaves_what_has_gradients_alone() -> None:
    x = torch.randn(20, requires_grad=True)
    before = x.detach().clone()
    (own,) = torch.autograd.grad(gelu_tanh(x).sum(), x)
    (expected,) = torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)
    assert torch.equal(x.detach(), before) and torch.equal(own, expected)


def owned(frames: int, tokens: int, patches: int) -> tuple[Tensor, Tensor]:
    """Sizes and owners of so many tokens, each of one patch at least."""
    owner = torch.stack([torch.cat([torch.arange(tokens), torch.randint(tokens, (patches - tokens,))])
                         for _ in range(frames)])
    return torch.stack([row.bincount(minlength=tokens) for row in owner]).float(), owner


def some_merge(frames: int, tokens: int, removed: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.stack([torch.randperm(tokens) for _ in range(frames)])
    return order[:, removed:], order[:, :removed], torch.randint(tokens - removed, (frames, removed))


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on the compiled form serves nothing."""
    return lambda: monkeypatch.setattr("components.kernels.vision.serves", lambda *_: False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("frames", "tokens", "removed", "width"),
                         [(3, 40, 15, 64), (1, 9, 8, 37), (2, 5, 1, 8), (2, 7, 0, 16)])
def test_merged_tokens_are_weighted_means(
    frames: int, tokens: int, removed: int, width: int, dtype: torch.dtype, by_torch: Callable[[], None]
) -> None:
    torch.manual_seed(0)
    size, owner = owned(frames, tokens, 60)
    before = VisualTokens(torch.randn(frames, tokens, width).to(dtype), size, owner)
    survivors, sources, into = merge = some_merge(frames, tokens, removed)
    expected = torch.zeros(frames, tokens - removed, width, dtype=torch.float64)
    for n in range(frames):
        groups = [[int(s)] for s in survivors[n]]
        for source, group in zip(sources[n].tolist(), into[n].tolist(), strict=True):
            groups[group].append(source)
        for g, group in enumerate(groups):
            weight = size[n, group].double()[:, None]
            expected[n, g] = (before.features[n, group].double() * weight).sum(0) / weight.sum()
    own = Absorption(*merge).apply(before)
    assert (own.features.double() - expected).abs().max() <= TOLERANCE[dtype] * 4
    counted = [row.bincount(minlength=tokens - removed) for row in own.owner]
    assert torch.equal(own.size, torch.stack(counted).float())
    assert (absorb(before, *merge) is None) == (missing("vision") is not None)
    by_torch()
    assert absorb(before, *merge) is None
    other = Absorption(*merge).apply(before)
    assert torch.equal(own.size, other.size) and torch.equal(own.owner, other.owner)
    assert (other.features.double() - expected).abs().max() <= TOLERANCE[dtype] * 8


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [64, 20])
def test_the_mean_of_the_heads_has_length_one(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keys = torch.randn(2, 7, 3, width).to(dtype).transpose(1, 2)
    expected = F.normalize(keys.double().mean(1), dim=-1)
    torch.testing.assert_close(mean_direction(keys).double(), expected, atol=1e-6, rtol=0)
    assert mean_direction(torch.zeros(1, 2, 3, width).to(dtype)).eq(0).all()


def test_the_default_dtype_decides_nothing() -> None:
    keys = torch.randn(2, 3, 9, 4).bfloat16()
    expected = mean_direction(keys)
    torch.set_default_dtype(torch.bfloat16)  # as training in pure bfloat16 does
    try:
        own = mean_direction(keys)
    finally:
        torch.set_default_dtype(torch.float32)
    assert own.dtype is torch.float32 and torch.equal(own, expected)


@pytest.mark.parametrize(("even", "odd", "remove"), [(1, 1, 1), (20, 19, 7), (20, 20, 20), (33, 33, 0), (2, 1, 1)])
def test_pairs_are_those_of_torch(even: int, odd: int, remove: int, by_torch: Callable[[], None]) -> None:
    torch.manual_seed(0)
    scores = torch.randint(-3, 4, (4, even, odd)).float()  # many ties
    scores[1, 0, odd // 2] = torch.nan
    scores[2] = -torch.inf
    own = match_pairs(scores, remove)
    by_torch()
    for mine, expected in zip(own, match_pairs(scores, remove), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64], ids=str)
def test_tokens_are_read_in_an_order(dtype: torch.dtype, by_torch: Callable[[], None]) -> None:
    torch.manual_seed(0)
    size, owner = owned(3, 11, 30)
    tokens = VisualTokens(torch.randn(3, 11, 5).to(dtype), size, owner)
    order = torch.stack([torch.randperm(11) for _ in range(3)])
    own = reorder(tokens, order)
    for frame in range(3):
        assert torch.equal(own.features[frame], tokens.features[frame, order[frame]])
        assert torch.equal(order[frame][own.owner[frame]], owner[frame])
    by_torch()
    assert all(map(torch.equal, own, reorder(tokens, order)))


@pytest.mark.skipif(missing("vision") is not None, reason="torch's form raises errors of its own")
@pytest.mark.parametrize("wrong", [-1, 11])
def test_tokens_that_do_not_exist_are_refused(wrong: int) -> None:
    size, owner = owned(1, 11, 30)
    order = torch.arange(11)[None].clone()
    order[0, 4] = wrong
    tokens = VisualTokens(torch.randn(1, 11, 5), size, owner)
    with pytest.raises(IndexError, match="11 tokens"):
        reorder(tokens, order)
    for place in range(3):
        merge = [index.clone() for index in some_merge(1, 11, 4)]
        merge[place][0, 1] = wrong
        with pytest.raises(IndexError, match="11 tokens into 7"):
            absorb(tokens, *merge)


@pytest.mark.skipif(missing("vision") is not None, reason="torch's form does not look")
def test_a_token_is_read_once() -> None:
    size, owner = owned(1, 3, 5)
    with pytest.raises(IndexError, match="each of them once"):
        reorder(VisualTokens(torch.randn(1, 3, 5), size, owner), torch.tensor([[0, 0, 1]]))


def test_merges_that_cannot_be_are_refused() -> None:
    size, owner = owned(1, 9, 20)
    survivors, sources, into = some_merge(1, 9, 4)
    with pytest.raises(ValueError, match=r"5 \+ 3 tokens is not one of 9"):
        absorb(VisualTokens(torch.randn(1, 9, 4), size, owner), survivors, sources[:, 1:], into[:, 1:])
    for indices in ((survivors, sources, into.int()), (survivors[:0], sources, into)):
        with pytest.raises(ValueError, match="needs int64 indices of each of them"):
            absorb(VisualTokens(torch.randn(1, 9, 4), size, owner), *indices)
    for even, odd, remove in ((3, 2, 4), (3, 0, 1), (3, 2, -1)):
        with pytest.raises(ValueError, match=f"{remove} of {even} tokens cannot go into {odd} others"):
            match_pairs(torch.randn(1, even, odd), remove)
