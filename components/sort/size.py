"""By size: the paper reads tokens that stand for few patches first (section 4.3.2, Table 4)."""

from typing import Literal

from torch import Tensor

from aurora.interfaces import Sorter, compiled
from aurora.registry import SORT
from aurora.types import VisualTokens


@SORT.register
class SizeSort(Sorter):
    """Tokens by the number of patches each stands for; tokens of one size keep their order."""

    def __init__(
        self, *, order: Literal["ascending", "descending"] = "ascending", where: Literal["layer", "final"] = "layer"
    ) -> None:
        self.descending = order == "descending"
        self.where = where

    @compiled("size")
    def order(self, tokens: VisualTokens) -> Tensor:
        return tokens.size.argsort(dim=1, descending=self.descending, stable=True)
