import torch

from aurora.errors import AuroraError
from aurora.interfaces import BlockView, Merge, MergeStrategy
from aurora.options import NonNegativeInt
from aurora.registry import MERGE

from .._shuffle import permutation
from ._groups import Absorption
from ._schedule import exact, half


@MERGE.register
class RandomMerge(MergeStrategy):
    """Averages tokens with random partners: a function of the seed and the number of tokens, alike in every frame."""

    def __init__(self, *, seed: NonNegativeInt = 0, proportional_attention: bool = True) -> None:
        self.seed = seed
        self.proportional_attention = proportional_attention

    def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
        """That of `tome`, so that the two can be compared."""
        return exact("random", patches, depth, keep, half)

    def match(self, view: BlockView, remove: int) -> Merge:
        """Merges `remove` random tokens into random others, each into its own as far as they go round.

        What remains stands in its former order.
        """
        frames, _, tokens, _ = view.keys.shape
        if remove >= tokens:
            raise AuroraError(f"merge 'random': cannot remove {remove} of {tokens} tokens; one has to stay")
        shuffled = permutation(self.seed, tokens, view.keys.device)
        sources, (survivors, drawn) = shuffled[:remove], shuffled[remove:].sort()
        # drawn.argsort()[i] is the place, among the survivors, of the i-th one drawn.
        into = drawn.argsort()[torch.arange(remove, device=drawn.device) % (tokens - remove)]
        return Absorption(*(index.expand(frames, -1) for index in (survivors, sources, into)))
