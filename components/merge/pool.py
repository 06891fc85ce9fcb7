import math

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.interfaces import BlockView, Merge, MergeStrategy
from aurora.registry import MERGE

from ._groups import Grouping
from ._schedule import check_keep


@MERGE.register
class Pool(MergeStrategy):
    """Average pooling: cells of the grid become one token each, in the last block; any number of cells."""

    # It merges after the last attention, so there is none left to be biased.
    proportional_attention = False

    def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
        check_keep("pool", patches, keep)
        return (0,) * (depth - 1) + (patches - keep,)

    def match(self, view: BlockView, remove: int) -> Merge:
        tokens, patches = view.keys.shape[2], view.tokens.owner.shape[1]
        if tokens != patches:
            raise AuroraError(f"merge 'pool' needs all {patches} patches, but only {tokens} tokens are left")
        cells = cell_of_patch(view.grid, patches - remove, view.tokens.owner.device)
        # A sorter may have moved the patches: the owner says where each one is now.
        target = torch.empty_like(view.tokens.owner).scatter(1, view.tokens.owner, cells.expand_as(view.tokens.owner))
        return Grouping(target, patches - remove)


def cell_of_patch(grid: tuple[int, int], cells: int, device: torch.device) -> Tensor:
    """[P] int64: the cell of each patch, when the grid is cut into that many cells, as square as possible.

    The rows form bands, and each band is cut along its columns into as many cells as its share, give or take one.
    """
    rows, columns = grid
    # Cells are square where rows / bands = columns / (cells / bands); the whole number nearest by factor.
    square = cells * rows / columns
    below = int(math.sqrt(square))
    bands = below if square <= below * (below + 1) else below + 1
    # No band has more cells than columns, and each has a row and a cell.
    bands = min(max(bands, -(-cells // columns)), rows, cells)
    band = torch.arange(rows, device=device) * bands // rows
    first = cells * band // bands
    share = cells * (band + 1) // bands - first
    return (first[:, None] + torch.arange(columns, device=device) * share[:, None] // columns).flatten()
