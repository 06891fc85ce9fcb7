"""What every registered merge strategy must show. Letters: N frames, P patches, M tokens."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aurora.errors import AuroraError
from aurora.interfaces import BlockView, MergeStrategy
from aurora.registry import MERGE
from aurora.types import VisualTokens

HEADS, KEY_WIDTH, WIDTH = 2, 4, 8
NAMES = pytest.mark.parametrize("name", MERGE.known())
laws = settings(max_examples=25, deadline=None, derandomize=True)


class Case(NamedTuple):
    grid: tuple[int, int]
    depth: int
    ratio: float
    frames: int
    seed: int

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


CASES = st.builds(
    Case,
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    depth=st.integers(1, 5),
    ratio=st.floats(0.02, 1),
    frames=st.integers(1, 3),
    seed=st.integers(0, 999),
)


def features(case: Case) -> torch.Tensor:
    return torch.randn(case.frames, case.patches, WIDTH, generator=torch.Generator().manual_seed(case.seed))


def view(tokens: VisualTokens, grid: tuple[int, int]) -> BlockView:
    """Queries and keys as a block would make them: one linear map for all tokens."""
    maps = torch.randn(2, WIDTH, HEADS * KEY_WIDTH, generator=torch.Generator().manual_seed(1))
    queries, keys = (
        (tokens.features.float() @ weight).view(*tokens.size.shape, HEADS, KEY_WIDTH).transpose(1, 2) for weight in maps
    )
    return BlockView(tokens, queries.to(tokens.features.dtype), keys.to(tokens.features.dtype), grid)


def run(strategy: MergeStrategy, case: Case, x: torch.Tensor) -> VisualTokens:
    """All blocks' merges, one after the other, without attention or MLP."""
    tokens = VisualTokens(x, torch.ones(x.shape[:2]), torch.arange(case.patches).expand(len(x), -1))
    for remove in schedule(strategy, case):
        if remove:
            tokens = strategy.match(view(tokens, case.grid), remove).apply(tokens)
    return tokens


def schedule(strategy: MergeStrategy, case: Case) -> tuple[int, ...]:
    keep = strategy.keep(case.patches, case.depth, case.ratio)
    try:
        return strategy.schedule(case.patches, case.depth, keep)
    except AuroraError:
        # Few blocks that halve at most cannot reach a small ratio; such a case says nothing about the law.
        assume(False)
        raise


@NAMES
@given(case=CASES)
@laws
def test_exactly_keep_tokens_remain(name: str, case: Case) -> None:
    strategy = MERGE.build({"name": name})
    tokens = run(strategy, case, features(case))
    keep = strategy.keep(case.patches, case.depth, case.ratio)
    assert tokens.features.shape == (case.frames, keep, WIDTH)
    assert tokens.size.shape == (case.frames, keep)


@NAMES
@given(case=CASES)
@laws
def test_the_schedule_has_one_count_for_every_block(name: str, case: Case) -> None:
    removed = schedule(MERGE.build({"name": name}), case)
    assert len(removed) == case.depth
    assert all(isinstance(count, int) and count >= 0 for count in removed)


@NAMES
@given(case=CASES)
@laws
def test_the_sizes_of_a_frame_sum_to_its_patches(name: str, case: Case) -> None:
    tokens = run(MERGE.build({"name": name}), case, features(case))
    assert (tokens.size.sum(1) == case.patches).all()


@NAMES
@given(case=CASES)
@laws
def test_owner_is_a_partition_whose_parts_are_as_large_as_size_says(name: str, case: Case) -> None:
    tokens = run(MERGE.build({"name": name}), case, features(case))
    parts = torch.stack([row.bincount(minlength=tokens.size.shape[1]) for row in tokens.owner])
    assert parts.shape == tokens.size.shape
    assert (parts == tokens.size).all()
    assert (parts > 0).all()


@NAMES
@given(case=CASES)
@laws
def test_frames_do_not_influence_each_other(name: str, case: Case) -> None:
    strategy, x = MERGE.build({"name": name}), features(case)
    together = run(strategy, case, x)
    for index in range(case.frames):
        alone = run(strategy, case, x[index : index + 1])
        torch.testing.assert_close(together.features[index], alone.features[0])
        assert (together.owner[index] == alone.owner[0]).all()


@NAMES
@given(case=CASES)
@laws
def test_permuting_the_frames_permutes_the_tokens(name: str, case: Case) -> None:
    strategy, x = MERGE.build({"name": name}), features(case)
    straight, flipped = run(strategy, case, x), run(strategy, case, x.flip(0))
    torch.testing.assert_close(straight.features.flip(0), flipped.features)
    assert (straight.owner.flip(0) == flipped.owner).all()


@NAMES
@given(case=CASES)
@laws
def test_keeping_everything_removes_nothing(name: str, case: Case) -> None:
    strategy = MERGE.build({"name": name})
    assert strategy.keep(case.patches, case.depth, 1.0) == case.patches
    assert strategy.schedule(case.patches, case.depth, case.patches) == (0,) * case.depth


@NAMES
@pytest.mark.parametrize("reduce", ["sum", "mean", "amax"])
def test_a_merge_reduces_any_width_within_its_groups(name: str, reduce: str) -> None:
    case = Case(grid=(3, 5), depth=1, ratio=0.6, frames=2, seed=3)
    strategy = MERGE.build({"name": name})
    remove = sum(schedule(strategy, case))
    if not remove:
        assert strategy.keep(case.patches, case.depth, case.ratio) == case.patches
        return
    x = features(case)
    tokens = VisualTokens(x, torch.ones(2, 15), torch.arange(15).expand(2, -1))
    merge = strategy.match(view(tokens, case.grid), remove)
    for width in (1, 3):
        given_values = torch.randn(2, 15, width)
        reduced = merge(given_values, reduce=reduce)
        for frame in range(2):
            for group in range(15 - remove):
                members = given_values[frame, merge.target[frame] == group]
                expected = members.amax(0) if reduce == "amax" else getattr(members, reduce)(0)
                torch.testing.assert_close(reduced[frame, group], expected)


@NAMES
def test_gradients_reach_the_features_of_every_survivor(name: str) -> None:
    case = Case(grid=(4, 4), depth=2, ratio=0.5, frames=2, seed=5)
    x = features(case).requires_grad_()
    tokens = run(MERGE.build({"name": name}), case, x)
    tokens.features.sum().backward()
    touched = (x.grad != 0).any(-1).sum(1)
    assert (touched >= tokens.size.shape[1]).all()


@NAMES
def test_half_precision_merges_too(name: str) -> None:
    case = Case(grid=(4, 6), depth=3, ratio=0.4, frames=2, seed=6)
    tokens = run(MERGE.build({"name": name}), case, features(case).bfloat16())
    assert tokens.features.dtype is torch.bfloat16
    assert (tokens.size.sum(1) == case.patches).all()


@NAMES
@pytest.mark.parametrize("keep", [0, 17])
def test_a_count_outside_the_patches_is_refused(name: str, keep: int) -> None:
    with pytest.raises(AuroraError, match=str(keep)):
        MERGE.build({"name": name}).schedule(16, 3, keep)
