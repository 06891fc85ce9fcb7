"""Steps that are not taken: without a finite gradient, or with a loss that leaps above those before."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from aurora.recipe import Spike


class StepGuard:
    """Says which steps are taken. All ranks hand in the same sums, so that they agree without a word."""

    def __init__(self, spike: Spike | None) -> None:
        self.spike = spike
        self.rolls_back = False  # whether the last step was a spike that asks for the weights of a checkpoint
        self._good: deque[float] = deque(maxlen=0 if spike is None else spike.window)

    def objection(self, loss: float, targets: float, norm: float) -> str | None:
        """Why a step with this summed loss and this gradient norm must not be taken; None when it may."""
        self.rolls_back = False
        if targets <= 0 or not math.isfinite(loss) or not math.isfinite(norm):
            return f"had no finite gradient (loss {loss}, gradient norm {norm}, {targets:.0f} targets)"
        mean = loss / targets
        if self.spike is not None and self._is_spike(mean, self.spike):
            self.rolls_back = self.spike.action == "rollback"
            return f"were spikes (loss {mean:.4f})"
        self._good.append(mean)
        return None

    def _is_spike(self, loss: float, spike: Spike) -> bool:
        return len(self._good) == spike.window and loss > spike.factor * median(self._good)

    def state(self) -> list[float]:
        """The losses that `restore` goes on with."""
        return list(self._good)

    def restore(self, losses: list[float]) -> None:
        """Goes on after some losses."""
        self._good.clear()
        self._good.extend(losses)
