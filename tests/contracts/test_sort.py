"""What every registered sorter must show."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora.errors import AuroraError
from aurora.registry import SORT
from aurora.types import VisualTokens

NAMES = pytest.mark.parametrize("name", SORT.known())
laws = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def merged_tokens(draw: st.DrawFn) -> VisualTokens:
    """Tokens of some frames whose patches were grouped at random."""
    frames, kept = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    extra = draw(st.integers(0, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    owner = torch.stack([
        torch.cat((torch.arange(kept), torch.randint(kept, (extra,), generator=generator)))[
            torch.randperm(kept + extra, generator=generator)
        ]
        for _ in range(frames)
    ])
    size = torch.stack([row.bincount(minlength=kept) for row in owner]).float()
    return VisualTokens(torch.randn(frames, kept, 4, generator=generator), size, owner)


@NAMES
@given(tokens=merged_tokens())
@laws
def test_the_order_is_a_permutation_of_each_frame(name: str, tokens: VisualTokens) -> None:
    order = SORT.build({"name": name}).order(tokens)
    assert order.dtype is torch.int64
    assert (order.sort(1).values == torch.arange(tokens.size.shape[1])).all()


@NAMES
@given(tokens=merged_tokens())
@laws
def test_a_frame_is_ordered_without_looking_at_the_others(name: str, tokens: VisualTokens) -> None:
    sorter = SORT.build({"name": name})
    together = sorter.order(tokens)
    for index in range(len(together)):
        alone = sorter.order(VisualTokens(*(part[index : index + 1] for part in tokens)))
        assert (together[index] == alone[0]).all()


@NAMES
@given(tokens=merged_tokens())
@laws
def test_asking_twice_gives_the_same_order(name: str, tokens: VisualTokens) -> None:
    assert (SORT.build({"name": name}).order(tokens) == SORT.build({"name": name}).order(tokens)).all()


@NAMES
@pytest.mark.parametrize("where", ["layer", "final"])
def test_where_is_an_option(name: str, where: str) -> None:
    assert SORT.build({"name": name, "where": where}).where == where


@NAMES
def test_an_unknown_where_is_refused(name: str) -> None:
    with pytest.raises(AuroraError, match=r"'finally'.*Did you mean 'final'"):
        SORT.build({"name": name, "where": "finally"})
