"""Random order: the paper's control (Table 4)."""

from typing import Literal

from torch import Tensor

from aurora.interfaces import Sorter
from aurora.options import NonNegativeInt
from aurora.registry import SORT
from aurora.types import VisualTokens

from .._shuffle import permutation


@SORT.register
class RandomSort(Sorter):
    """One shuffle of the current order, a function of the seed and the number of tokens, the same in every frame."""

    def __init__(self, *, seed: NonNegativeInt = 0, where: Literal["layer", "final"] = "layer") -> None:
        self.seed = seed
        self.where = where

    def order(self, tokens: VisualTokens) -> Tensor:
        return permutation(self.seed, tokens.size.shape[1], tokens.size.device).expand(tokens.size.shape)
