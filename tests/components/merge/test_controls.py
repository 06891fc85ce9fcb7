"""The merges that `tome` is measured against: none, pool, prune, random."""

import pytest
import torch

from aurora.errors import AuroraError
from aurora.interfaces import BlockView
from aurora.registry import MERGE
from aurora.types import VisualTokens
from components.merge.pool import cell_of_patch
from components.merge.prune import attention_received

CPU = torch.device("cpu")


def view_of(grid: tuple[int, int], frames: int = 2, seed: int = 0) -> BlockView:
    patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, frames, 3, patches, 4, generator=generator)
    features = torch.randn(frames, patches, 6, generator=generator)
    tokens = VisualTokens(features, torch.ones(frames, patches), torch.arange(patches).expand(frames, -1))
    return BlockView(tokens, queries, keys, grid)


def shuffled(view: BlockView, order: torch.Tensor) -> BlockView:
    """The same tokens standing in another order."""
    features, size, owner = view.tokens
    tokens = VisualTokens(features[:, order], size[:, order], order.argsort()[owner])
    return BlockView(tokens, view.queries[:, :, order], view.keys[:, :, order], view.grid)


def test_none_keeps_everything_at_any_ratio_and_refuses_less() -> None:
    strategy = MERGE.build({"name": "none"})
    assert strategy.keep(576, 24, 0.1) == 576
    with pytest.raises(AuroraError, match="keeps all 576 patches and cannot keep 58"):
        strategy.schedule(576, 24, 58)


# ---- pool


def test_pool_of_a_divisible_grid_is_average_pooling() -> None:
    view = view_of((6, 6))
    pooled = MERGE.build({"name": "pool"}).match(view, 27).apply(view.tokens)
    image = view.tokens.features.transpose(1, 2).unflatten(2, (6, 6))
    expected = torch.nn.functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled.features, expected)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (7, 1), (5, 5), (3, 8), (9, 4)])
def test_any_number_of_cells_covers_any_grid(grid: tuple[int, int]) -> None:
    for cells in range(1, grid[0] * grid[1] + 1):
        labels = cell_of_patch(grid, cells, CPU)
        assert labels.unique().tolist() == list(range(cells))


def test_every_cell_is_a_rectangle() -> None:
    for cells in range(1, 41):
        labels = cell_of_patch((5, 8), cells, CPU).view(5, 8)
        for cell in range(cells):
            rows, columns = (labels == cell).nonzero().T
            assert len(rows) == len(rows.unique()) * len(columns.unique())


@pytest.mark.parametrize(("grid", "cells", "side"), [((24, 24), 64, 3), ((24, 24), 144, 2), ((12, 24), 8, 6)])
def test_cells_are_square_where_they_can_be(grid: tuple[int, int], cells: int, side: int) -> None:
    labels = cell_of_patch(grid, cells, CPU).view(grid)
    assert (labels == labels[::side, ::side].repeat_interleave(side, 0).repeat_interleave(side, 1)).all()


def test_a_cell_of_58_is_nowhere_a_strip() -> None:
    labels = cell_of_patch((24, 24), 58, CPU).view(24, 24)
    for cell in range(58):
        rows, columns = (labels == cell).nonzero().T
        height, width = len(rows.unique()), len(columns.unique())
        assert max(height, width) <= 2 * min(height, width)


def test_pool_finds_its_cells_when_a_sorter_moved_the_patches() -> None:
    view = view_of((4, 6))
    moved = shuffled(view, torch.randperm(24, generator=torch.Generator().manual_seed(0)))
    strategy = MERGE.build({"name": "pool"})
    still, after = strategy.match(view, 17).apply(view.tokens), strategy.match(moved, 17).apply(moved.tokens)
    assert (still.owner == after.owner).all()
    torch.testing.assert_close(still.features, after.features)


def test_pool_merges_in_the_last_block_only() -> None:
    assert MERGE.build({"name": "pool"}).schedule(576, 24, 58) == (0,) * 23 + (518,)


# ---- prune


def test_prune_keeps_the_tokens_of_largest_norm_as_they_are() -> None:
    view = view_of((3, 5))
    pruned = MERGE.build({"name": "prune"}).match(view, 9).apply(view.tokens)
    for frame in range(2):
        features = view.tokens.features[frame]
        largest = sorted(sorted(range(15), key=lambda token: -features[token].norm().item())[:6])
        assert (pruned.features[frame] == features[largest]).all()


def test_prune_by_attention_keeps_the_tokens_that_receive_most() -> None:
    view = view_of((3, 5))
    pruned = MERGE.build({"name": "prune", "by": "attention"}).match(view, 9).apply(view.tokens)
    for frame in range(2):
        received = torch.zeros(15)
        for head in range(3):
            for query in range(15):
                received += (view.keys[frame, head] @ view.queries[frame, head, query] / 2).softmax(0)
        best = received.topk(6).indices.sort().values
        assert (pruned.features[frame] == view.tokens.features[frame, best]).all()


def test_attention_received_is_a_share_of_one() -> None:
    view = view_of((3, 5))
    torch.testing.assert_close(attention_received(view, proportional=True).sum(1), torch.ones(2))


def test_a_token_of_size_two_receives_what_two_equal_tokens_would() -> None:
    view = view_of((1, 5))
    doubled = view._replace(tokens=view.tokens._replace(size=torch.tensor([[1.0, 1, 2, 1, 1]] * 2)))
    once = attention_received(doubled, proportional=True)
    twice = shuffled(view, torch.tensor([0, 1, 2, 2, 3, 4]))
    apart = attention_received(twice._replace(queries=view.queries), proportional=False)
    torch.testing.assert_close(once[:, 2], apart[:, 2] + apart[:, 3])


def test_the_patches_of_a_dropped_token_go_to_the_survivor_most_like_it() -> None:
    view = view_of((3, 4), frames=1)
    merge = MERGE.build({"name": "prune"}).match(view, 7)
    metric = torch.nn.functional.normalize(view.keys.mean(1)[0], dim=-1)
    survivors = view.tokens.features[0].norm(dim=-1).topk(5).indices.sort().values
    for token in set(range(12)) - set(survivors.tolist()):
        assert merge.target[0, token] == (metric[survivors] @ metric[token]).argmax()


def test_prune_can_leave_a_single_token_in_one_block() -> None:
    assert MERGE.build({"name": "prune"}).schedule(36, 1, 1) == (35,)


@pytest.mark.parametrize("name", ["prune", "random"])
def test_the_last_token_cannot_be_removed(name: str) -> None:
    with pytest.raises(AuroraError, match="6 of 6 tokens"):
        MERGE.build({"name": name}).match(view_of((2, 3)), 6)


# ---- random


def test_random_groups_depend_on_the_seed() -> None:
    view = view_of((6, 6))
    targets = [MERGE.build({"name": "random", "seed": seed}).match(view, 12).target[0].tolist() for seed in range(5)]
    assert len({tuple(target) for target in targets}) == 5


def test_random_groups_do_not_depend_on_what_the_frame_shows() -> None:
    strategy = MERGE.build({"name": "random"})
    one, other = strategy.match(view_of((6, 6), seed=0), 12), strategy.match(view_of((6, 6), seed=1), 12)
    assert (one.target == other.target).all()
    assert (one.target[0] == one.target[1]).all()


def test_random_pairs_are_spread_over_the_survivors() -> None:
    merge = MERGE.build({"name": "random"}).match(view_of((6, 6)), 18)
    assert (merge.target[0].bincount() == 2).all()


def test_random_survivors_keep_their_order() -> None:
    merge = MERGE.build({"name": "random"}).match(view_of((6, 6)), 5)
    assert (merge.survivors.diff(dim=1) > 0).all()
    assert (merge.target.gather(1, merge.survivors) == torch.arange(31)).all()


@pytest.mark.parametrize(("name", "option"), [("prune", {"by": "size"}), ("random", {"seed": -1})])
def test_a_wrong_option_is_refused(name: str, option: dict) -> None:
    with pytest.raises(AuroraError, match=f"merge '{name}': {next(iter(option))}"):
        MERGE.build({"name": name, **option})
