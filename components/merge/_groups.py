"""Decided merges. Shape letters: N frames, M tokens before, G groups after, r = M - G sources, C any width."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from aurora.interfaces import BlockView, Merge
from aurora.types import VisualTokens

from .._rows import add_to, take
from ..kernels.vision import absorb, mean_direction

Reduce = Literal["sum", "mean", "amax"]


def similarity_metric(view: BlockView) -> Tensor:
    """[N, M, K] of length one: the mean over the heads of the keys, whose products are cosine similarities."""
    return mean_direction(view.keys.detach())


def similarity(some: Tensor, others: Tensor) -> Tensor:
    """[N, A, K], [N, B, K] → [N, A, B] float32."""
    # Autocast would round to bfloat16, where cosines near 1 are 0.4 % apart and most similar pairs would tie.
    kind = some.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return some @ others.transpose(1, 2)


class Grouping(Merge):
    """Tokens labelled by the group they go into; every group has at least one."""

    def __init__(self, target: Tensor, groups: int) -> None:
        self._target = target
        self._groups = groups

    @property
    def target(self) -> Tensor:
        return self._target

    def __call__(self, x: Tensor, *, reduce: Reduce) -> Tensor:
        into = x.new_zeros(x.shape[0], self._groups, x.shape[-1])
        if reduce == "sum":
            return add_to(into, self._target, x)
        return into.scatter_reduce(1, self._target.unsqueeze(-1).expand_as(x), x, reduce, include_self=False)


class Absorption(Merge):
    """r sources go into G survivors, which stand in the order given."""

    def __init__(self, survivors: Tensor, sources: Tensor, into: Tensor) -> None:
        """`survivors` [N, G] and `sources` [N, r] index the tokens, `into` [N, r] the survivors."""
        self.survivors, self.sources, self.into = survivors, sources, into

    @property
    def target(self) -> Tensor:
        tokens = self.survivors.shape[1] + self.sources.shape[1]
        places = torch.arange(self.survivors.shape[1], device=self.into.device).expand_as(self.survivors)
        target = self.into.new_empty(self.into.shape[0], tokens)
        return target.scatter(1, self.survivors, places).scatter(1, self.sources, self.into)

    def __call__(self, x: Tensor, *, reduce: Reduce) -> Tensor:
        kept, merged = take(x, self.survivors), take(x, self.sources)
        if reduce == "sum":
            return add_to(kept, self.into, merged)
        return kept.scatter_reduce(1, self.into.unsqueeze(-1).expand_as(merged), merged, reduce)

    def apply(self, tokens: VisualTokens) -> VisualTokens:
        merged = absorb(tokens, self.survivors, self.sources, self.into)
        return super().apply(tokens) if merged is None else merged
