"""Packed rows, as the layers of a backbone see them.

Shape letters: T packed positions, S sequences, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """Where the sequences of a row start and end."""

    cu_seqlens: Tensor  # [S + 1] on the CPU: kernels lay out their work by it, and should not wait for a device
    first: Tensor  # [S] position of the first token of each sequence
    last: Tensor  # [S] position of the last one

    @classmethod
    def of(cls, cu_seqlens: Tensor, device: torch.device) -> Row:
        bounds = cu_seqlens.cpu()
        return cls(bounds, bounds[:-1].to(device), (bounds[1:] - 1).to(device))

    def shift(self, x: Tensor, before: Tensor | None) -> Tensor:
        """[T, D]: what stood before each position; `before` [S, D] (or zero) at the start of each sequence."""
        if before is None:
            before = x.new_zeros(len(self.first), x.shape[-1])
        return torch.cat([x[:1], x[:-1]]).index_copy(0, self.first, before.to(x.dtype))
