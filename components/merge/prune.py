"""Pruning: tokens that matter least are dropped, none is averaged. A control for merging.

Shape letters: N frames, H heads, M tokens, K key width, r tokens removed.
"""

from typing import Literal

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.interfaces import BlockView, Merge, MergeStrategy
from aurora.registry import MERGE

from .._rows import take
from ._groups import Absorption, similarity, similarity_metric
from ._schedule import all_but_one, exact


class Selection(Absorption):
    """Survivors as they are; the patches of a dropped token are counted to the survivor most like it."""

    def features(self, x: Tensor, size: Tensor) -> Tensor:
        return take(x, self.survivors)

    apply = Merge.apply  # what is compiled takes means


@MERGE.register
class Prune(MergeStrategy):
    """Keeps the tokens of the largest feature norm, or those that receive most attention, in their order.

    A survivor is not the mean of what it stands for, so its size does not weigh in attention unless asked for.
    """

    def __init__(self, *, by: Literal["norm", "attention"] = "norm", proportional_attention: bool = False) -> None:
        self.by = by
        self.proportional_attention = proportional_attention

    def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
        return exact("prune", patches, depth, keep, all_but_one)

    @torch.no_grad()
    def match(self, view: BlockView, remove: int) -> Merge:
        tokens = view.keys.shape[2]
        if remove >= tokens:
            raise AuroraError(f"merge 'prune': cannot remove {remove} of {tokens} tokens; one has to stay")
        ranked = self._worth(view).argsort(dim=-1, stable=True)
        dropped, survivors = ranked[:, :remove], ranked[:, remove:].sort(-1).values
        metric = similarity_metric(view)
        nearest = similarity(take(metric, dropped), take(metric, survivors)).argmax(-1)  # [N, r]
        return Selection(survivors, dropped, into=nearest)

    def _worth(self, view: BlockView) -> Tensor:
        if self.by == "norm":
            norm: Tensor = torch.linalg.vector_norm(view.tokens.features.float(), dim=-1)
            return norm
        return attention_received(view, proportional=self.proportional_attention)


def attention_received(view: BlockView, *, proportional: bool) -> Tensor:
    """[N, M]: the attention that each token receives, its mean over heads and queries."""
    bias = view.tokens.size.float().log().unsqueeze(1) if proportional else 0.0  # [N, 1, M]
    scale = view.keys.shape[-1] ** -0.5
    received = torch.zeros_like(view.tokens.size, dtype=torch.float32)
    # Head by head: all [N, H, M, M] scores at once would be the largest tensor of the encoder.
    for queries, keys in zip(view.queries.float().unbind(1), view.keys.float().unbind(1), strict=True):
        received = received + (queries @ keys.transpose(1, 2) * scale + bias).softmax(-1).mean(1)
    return received / view.keys.shape[1]
