from torch import Tensor

from aurora.interfaces import FrameSkip
from aurora.registry import SKIP


@SKIP.register
class NoSkip(FrameSkip):
    """Reads every frame."""

    def skips(self, frame: Tensor, last: Tensor) -> bool:
        return False
