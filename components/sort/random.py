"""Random order: the paper's control (Table 4)."""

from __future__ import annotations

from torch import Tensor

from aurora.interfaces import Sorter
from aurora.registry import SORT
from aurora.types import VisualTokens

from .._options import whole
from .._shuffle import permutation
from ._where import Where, check_where


@SORT.register
class RandomSort(Sorter):
    """One shuffle of the current order, a function of the seed and the number of tokens, the same in every frame."""

    def __init__(self, *, seed: int = 0, where: Where = "layer") -> None:
        whole("sort 'random'", "seed", seed, least=0)
        self.seed = seed
        self.where = check_where("random", where)

    def order(self, tokens: VisualTokens) -> Tensor:
        return permutation(self.seed, tokens.size.shape[1], tokens.size.device).expand(tokens.size.shape)
