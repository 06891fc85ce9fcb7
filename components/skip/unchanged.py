from typing import Annotated

import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from aurora.interfaces import FrameSkip
from aurora.options import PositiveInt
from aurora.registry import SKIP


@SKIP.register
class UnchangedSkip(FrameSkip):
    """Skips a frame when no part of it has changed since the last one that was read.

    The picture is compared in cells of `cell` × `cell` pixels, so that noise averages out while a small thing that
    moves does not: a frame is read when the mean of one cell has moved by more than `threshold`, a share of the range
    from black to white.
    """

    def __init__(self, *, threshold: Annotated[float, Gt(0), Le(1)] = 0.02, cell: PositiveInt = 8) -> None:
        self.threshold, self.cell = threshold, cell

    def skips(self, frame: Tensor, last: Tensor) -> bool:
        if frame.shape != last.shape:
            return False
        cell = min(self.cell, *frame.shape[-2:])
        moved = F.avg_pool2d(frame.float() - last.float(), cell, ceil_mode=True)
        return bool(moved.abs().max() <= 255 * self.threshold)
