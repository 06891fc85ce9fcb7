"""Token merging (ToMe, arXiv 2210.09461, section 3): the most similar tokens become one, block by block.

Tokens at even places go into tokens at odd places.
"""

from typing import Literal

import torch

from aurora.errors import AuroraError
from aurora.interfaces import BlockView, Merge, MergeStrategy, compiled
from aurora.registry import MERGE

from ..kernels.vision import match_pairs
from ._groups import Absorption, similarity, similarity_metric
from ._schedule import exact, floor, floor_to, half


@MERGE.register
class TokenMerging(MergeStrategy):
    """Token merging (ToMe), the paper's: averages the most similar tokens, by bipartite matching on their keys.

    `schedule`: `exact` keeps exactly what the ratio asks for, `floor` removes one whole number in every block and so
    keeps a few more (the numbers of the paper's supplement).
    """

    def __init__(
        self, *, schedule: Literal["exact", "floor"] = "exact", proportional_attention: bool = True
    ) -> None:
        self.exact = schedule == "exact"
        self.proportional_attention = proportional_attention

    def keep(self, patches: int, depth: int, ratio: float) -> int:
        wanted = super().keep(patches, depth, ratio)
        return wanted if self.exact else patches - sum(floor(patches, depth, wanted, half))

    def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
        spread = exact if self.exact else floor_to
        return spread("tome", patches, depth, keep, half)

    @compiled("tome")
    @torch.no_grad()
    def match(self, view: BlockView, remove: int) -> Merge:
        """Merges the `remove` even tokens that are most similar to an odd one into that one.

        What remains stands in the order unmerged even tokens, then odd tokens, each in their former order.
        """
        tokens = view.keys.shape[2]
        if remove > half(tokens):
            raise AuroraError(f"merge 'tome': a block of {tokens} tokens can remove {half(tokens)}, not {remove}")
        metric = similarity_metric(view)
        return Absorption(*match_pairs(similarity(metric[:, ::2], metric[:, 1::2]), remove))
