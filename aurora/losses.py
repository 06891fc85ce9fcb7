"""Cross-entropy over a packed row, in chunks, so that the [T, V] logits never exist.

Shape letters: T packed positions, D backbone width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aurora.types import IGNORE, TokenLoss

LOGIT_BYTES = 64 * 2**20
"""Room for the logits of one chunk; at a vocabulary of 65,536 in fp32 this is 256 positions."""


def chunked_cross_entropy(hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], vocab_size: int
                          ) -> TokenLoss:
    """[T, D], [T] → the summed loss of the targets that are not IGNORE, and their number.

    Ignored positions are left out before `logits` is called; each chunk's logits are made again in the backward pass.
    """
    learned = targets != IGNORE
    kept, answers = hidden[learned], targets[learned]
    chunk = max(16, LOGIT_BYTES // (4 * vocab_size))
    if not len(answers):
        # The empty product keeps all weights in the graph: a rank without a target must not leave the others waiting.
        return TokenLoss(logits(hidden[:1]).float().sum() * 0.0, learned.sum())
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(answers), chunk):
        span = slice(start, start + chunk)
        total = total + checkpoint(_summed_loss, kept[span], answers[span], logits, use_reentrant=False)
    return TokenLoss(total, learned.sum())


def _summed_loss(hidden: Tensor, answers: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    return F.cross_entropy(logits(hidden).float(), answers, reduction="sum")
