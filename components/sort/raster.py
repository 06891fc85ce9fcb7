from typing import Literal

import torch
from torch import Tensor

from aurora.interfaces import Sorter
from aurora.registry import SORT
from aurora.types import VisualTokens


@SORT.register
class RasterSort(Sorter):
    """Reading order: tokens by the first input patch that each owns.

    After the last block by default, so that merging pairs tokens in the order in which it left them.
    """

    def __init__(self, *, where: Literal["layer", "final"] = "final") -> None:
        self.where = where

    def order(self, tokens: VisualTokens) -> Tensor:
        patches = torch.arange(tokens.owner.shape[1], device=tokens.owner.device).expand_as(tokens.owner)
        first = torch.full(tokens.size.shape, patches.shape[1], device=patches.device)
        return first.scatter_reduce(1, tokens.owner, patches, "amin").argsort(dim=1, stable=True)
