"""Decided merges. Shape letters: N frames, M tokens before, G groups after, r = M - G sources, C any width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora.interfaces import BlockView, Merge

Reduce = Literal["sum", "mean", "amax"]


def similarity_metric(view: BlockView) -> Tensor:
    """[N, M, K] of length one: the mean over the heads of the keys, whose products are cosine similarities."""
    return F.normalize(view.keys.detach().float().mean(1), dim=-1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """[N, M, C], [N, G] → [N, G, C]: the tokens at `index`."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


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
        index = self._target.unsqueeze(-1).expand_as(x)
        if reduce == "sum":
            return into.scatter_add(1, index, x)
        return into.scatter_reduce(1, index, x, reduce, include_self=False)


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
        index = self.into.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        kept, merged = take(x, self.survivors), take(x, self.sources)
        if reduce == "sum":
            return kept.scatter_add(1, index, merged)
        return kept.scatter_reduce(1, index, merged, reduce)
