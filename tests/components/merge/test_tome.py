"""Token merging against its definition, written as loops. Letters: A even tokens, B odd tokens."""

import math

import pytest
import torch

from aurora.errors import AuroraError
from aurora.interfaces import BlockView
from aurora.registry import MERGE
from aurora.types import VisualTokens


def tokens_of(frames: int, count: int, seed: int = 0, largest: int = 5) -> VisualTokens:
    """Random features and sizes; the patches are owned in runs."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(1, largest + 1, (frames, count), generator=generator)
    size[:, -1] += largest * count - size.sum(1)
    owner = torch.stack([torch.arange(count).repeat_interleave(row) for row in size])
    return VisualTokens(torch.randn(frames, count, 6, generator=generator), size.float(), owner)


def view_of(tokens: VisualTokens, seed: int = 0) -> BlockView:
    generator = torch.Generator().manual_seed(seed + 100)
    keys = torch.randn(*tokens.size.shape, 3, 4, generator=generator).transpose(1, 2)
    return BlockView(tokens, torch.randn_like(keys), keys, (1, tokens.owner.shape[1]))


def groups_by_definition(keys: torch.Tensor, remove: int) -> list[list[int]]:
    """The groups of one frame, keys [H, M, K]: unmerged A in order, then B in order with what went into each."""
    metric = keys.mean(0).tolist()
    count = len(metric)

    def cosine(i: int, j: int) -> float:
        dot = sum(x * y for x, y in zip(metric[i], metric[j], strict=True))
        return dot / math.hypot(*metric[i]) / math.hypot(*metric[j])

    pairs = []
    for i in range(0, count, 2):
        partner = max(range(1, count, 2), key=lambda j: cosine(i, j))
        pairs.append((cosine(i, partner), i, partner))
    merged = {i: partner for _, i, partner in sorted(pairs, reverse=True)[:remove]}
    unmerged = [[i] for i in range(0, count, 2) if i not in merged]
    return unmerged + [[j, *(i for i, partner in merged.items() if partner == j)] for j in range(1, count, 2)]


@pytest.mark.parametrize(
    ("count", "remove"), [(2, 1), (3, 1), (3, 2), (8, 1), (8, 4), (9, 3), (9, 5), (25, 12), (25, 13), (36, 18)]
)
def test_the_groups_are_those_of_the_definition(count: int, remove: int) -> None:
    tokens = tokens_of(3, count, seed=count)
    view = view_of(tokens, seed=remove)
    merge = MERGE.build({"name": "tome"}).match(view, remove)
    for frame in range(3):
        expected = groups_by_definition(view.keys[frame], remove)
        assert len(expected) == count - remove
        for group, members in enumerate(expected):
            assert sorted(members) == (merge.target[frame] == group).nonzero().flatten().tolist()


def test_autocast_does_not_blur_which_tokens_are_similar() -> None:
    base = view_of(tokens_of(4, 64))
    alike = base._replace(keys=10 + base.keys)  # cosines above 0.99
    strategy = MERGE.build({"name": "tome"})
    expected = strategy.match(alike, 20).target
    with torch.autocast("cpu", torch.bfloat16):
        assert (strategy.match(alike, 20).target == expected).all()


@pytest.mark.parametrize("count", [8, 9])
def test_features_are_the_size_weighted_mean_of_each_group(count: int) -> None:
    tokens = tokens_of(2, count)
    view = view_of(tokens)
    merged = MERGE.build({"name": "tome"}).match(view, 4).apply(tokens)
    for frame in range(2):
        for group, members in enumerate(groups_by_definition(view.keys[frame], 4)):
            size = tokens.size[frame, members]
            mean = (tokens.features[frame, members] * size[:, None]).sum(0) / size.sum()
            torch.testing.assert_close(merged.features[frame, group], mean)
            assert merged.size[frame, group] == size.sum()


def test_after_many_blocks_a_token_is_the_mean_of_the_patches_it_owns() -> None:
    strategy = MERGE.build({"name": "tome"})
    patches = torch.randn(2, 49, 5)
    tokens = VisualTokens(patches, torch.ones(2, 49), torch.arange(49).expand(2, -1))
    for seed, remove in enumerate(strategy.schedule(49, 6, 7)):
        tokens = strategy.match(view_of(tokens, seed), remove).apply(tokens)
    for frame in range(2):
        for token in range(7):
            mean = patches[frame, tokens.owner[frame] == token].mean(0)
            torch.testing.assert_close(tokens.features[frame, token], mean)


def test_more_than_all_even_tokens_cannot_be_removed_at_once() -> None:
    tokens = tokens_of(1, 9)
    with pytest.raises(AuroraError, match="9 tokens can remove 5, not 6"):
        MERGE.build({"name": "tome"}).match(view_of(tokens), 6)


def test_exact_keeps_58_of_the_papers_576_patches_by_removing_21_or_22_a_block() -> None:
    removed = MERGE.build({"name": "tome"}).schedule(576, 24, 58)
    assert sum(removed) == 576 - 58
    assert set(removed) == {21, 22}
    assert removed == tuple(sorted(removed, reverse=True))


@pytest.mark.parametrize(("ratio", "kept"), [(0.7, 408), (0.5, 288), (0.1, 72), (0.05, 48)])
def test_floor_keeps_the_numbers_of_the_papers_supplement(ratio: float, kept: int) -> None:
    strategy = MERGE.build({"name": "tome", "schedule": "floor"})
    assert strategy.keep(576, 24, ratio) == kept
    assert strategy.schedule(576, 24, kept) == ((576 - kept) // 24,) * 24


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, 576), (0.5, 288), (0.1, 58), (0.05, 29)])
def test_exact_keeps_what_the_ratio_says(ratio: float, kept: int) -> None:
    strategy = MERGE.build({"name": "tome"})
    assert strategy.keep(576, 24, ratio) == kept
    assert sum(strategy.schedule(576, 24, kept)) == 576 - kept


@pytest.mark.parametrize("depth", [1, 2, 3, 23])
@pytest.mark.parametrize("patches", [1, 2, 3, 9, 36, 77])
def test_exact_reaches_every_count_down_to_what_halving_leaves(patches: int, depth: int) -> None:
    strategy = MERGE.build({"name": "tome"})
    least = max(1, patches >> depth)
    for keep in range(1, least):
        with pytest.raises(AuroraError, match=f"smallest they reach is {least}"):
            strategy.schedule(patches, depth, keep)
    for keep in range(least, patches + 1):
        assert_possible(patches, strategy.schedule(patches, depth, keep), keep)


def assert_possible(patches: int, removed: tuple[int, ...], keep: int) -> None:
    for count in removed:
        assert 0 <= count <= ((patches + 1) // 2 if patches > 1 else 0)
        patches -= count
    assert patches == keep


def test_where_late_blocks_cannot_remove_their_share_early_ones_remove_more() -> None:
    removed = MERGE.build({"name": "tome"}).schedule(64, 4, 5)
    assert sum(removed) == 59
    assert removed[0] > 59 / 4 > removed[-1]


@pytest.mark.parametrize("depth", [1, 3, 24])
@pytest.mark.parametrize("patches", [2, 9, 36, 80])
def test_floor_schedules_end_at_the_count_that_keep_promised(patches: int, depth: int) -> None:
    strategy = MERGE.build({"name": "tome", "schedule": "floor"})
    for percent in range(1, 101):
        keep = strategy.keep(patches, depth, percent / 100)
        assert_possible(patches, strategy.schedule(patches, depth, keep), keep)
        assert keep >= percent / 100 * patches - 1e-9


def test_floor_says_which_counts_are_near_one_that_it_cannot_keep() -> None:
    with pytest.raises(AuroraError, match="cannot keep 58 of 576 patches; it keeps 72 or 48"):
        MERGE.build({"name": "tome", "schedule": "floor"}).schedule(576, 24, 58)


@pytest.mark.parametrize("option", [{"schedule": "exactly"}, {"proportional_attention": "yes"}])
def test_a_wrong_option_is_refused(option: dict) -> None:
    with pytest.raises(AuroraError, match=repr(next(iter(option.values())))):
        MERGE.build({"name": "tome", **option})
