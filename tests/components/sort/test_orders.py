"""What each order means."""

import pytest
import torch

from aurora.errors import AuroraError
from aurora.registry import SORT
from aurora.types import VisualTokens
from components._shuffle import permutation

# Two frames of seven patches in four tokens.
OWNER = torch.tensor([[2, 2, 0, 3, 0, 2, 1], [3, 0, 3, 1, 3, 3, 2]])
SIZE = torch.tensor([[2.0, 1, 3, 1], [1, 1, 1, 4]])
TOKENS = VisualTokens(torch.zeros(2, 4, 1), SIZE, OWNER)


def test_raster_reads_tokens_by_their_first_patch() -> None:
    assert SORT.build({"name": "raster"}).order(TOKENS).tolist() == [[2, 0, 3, 1], [3, 0, 1, 2]]


def test_ascending_size_leaves_equal_tokens_in_their_order() -> None:
    assert SORT.build({"name": "size"}).order(TOKENS).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def test_descending_size_leaves_equal_tokens_in_their_order() -> None:
    order = SORT.build({"name": "size", "order": "descending"}).order(TOKENS)
    assert order.tolist() == [[2, 0, 1, 3], [3, 0, 1, 2]]


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_many_equal_sizes_stay_as_they_stand(order: str) -> None:
    tokens = VisualTokens(torch.zeros(1, 999, 1), torch.ones(1, 999), torch.arange(999)[None])
    assert (SORT.build({"name": "size", "order": order}).order(tokens) == torch.arange(999)).all()


def test_random_orders_differ_by_seed_and_not_by_frame() -> None:
    tokens = VisualTokens(torch.zeros(2, 40, 1), torch.ones(2, 40), torch.arange(40).expand(2, -1))
    orders = [SORT.build({"name": "random", "seed": seed}).order(tokens) for seed in range(5)]
    assert len({tuple(order[0].tolist()) for order in orders}) == 5
    assert all((order[0] == order[1]).all() for order in orders)


def test_a_seeds_shuffle_never_changes() -> None:
    # Literal on purpose: published results depend on it.
    assert permutation(0, 8, torch.device("cpu")).tolist() == [4, 6, 7, 0, 5, 2, 1, 3]


def test_shuffles_put_every_token_everywhere_about_equally_often() -> None:
    counts = torch.zeros(6, 6)
    for seed in range(3000):
        counts[torch.arange(6), permutation(seed, 6, torch.device("cpu"))] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 52.6  # the 0.1 % point of χ² with 25 degrees of freedom


def test_sizes_sort_within_every_block_by_default_and_raster_after_the_last() -> None:
    assert [SORT.build({"name": name}).where for name in ("size", "random", "raster")] == ["layer", "layer", "final"]


@pytest.mark.parametrize(("name", "option"), [("size", {"order": "up"}), ("random", {"seed": 1.5})])
def test_a_wrong_option_is_refused(name: str, option: dict) -> None:
    with pytest.raises(AuroraError, match=f"sort '{name}': {next(iter(option))}"):
        SORT.build({"name": name, **option})
