"""What the loss is multiplied with before the backward pass, and gradients are divided by before they are used.

float16 knows nothing below 6e-8 and nothing above 65,504: small gradients must be made larger to be there at all, and
not so large that they overflow (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aurora.training.recipe import TrainerOptions

START, LEAST = 2.0**16, 1.0  # of a mean loss
GROW_AFTER = 2000  # steps without an overflow
USUAL_ROW = 4096  # targets of a row at most, where the data does not say


def build_loss_scale(options: TrainerOptions, config: Mapping[str, Any]) -> LossScale:
    """What the precision asks for: only float16 needs a scale."""
    if options.precision != "16-mixed":
        return LossScale()
    return DynamicLossScale(most_targets=config["data"].get("row_tokens", USUAL_ROW))


class LossScale:
    """One, always: float32 and bfloat16 have exponents enough."""

    @property
    def factor(self) -> float:
        """What the summed loss of a row is multiplied with; the same for all rows of a step, on all ranks."""
        return 1.0

    def overflowed(self, loss: float, norm: float) -> bool:
        """Whether a step with this summed loss and this gradient norm is lost to its scale alone, so that it is left
        out and is none of the bad steps. Asked once per step; all ranks hand in the same sums, so that they agree
        without a word."""
        return False

    def measured(self) -> dict[str, float]:
        """What the curve shows of it."""
        return {}

    def state(self) -> dict[str, Any]:
        """What `restore` goes on with, in plain values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; an empty one, of a checkpoint that knows of none, changes nothing."""


class DynamicLossScale(LossScale):
    """Twice as large after many steps in a row without an overflow, half as large after one.

    `scale` is that of a mean loss, as everybody counts it. Rows add sums, in whose gradients up to `most_targets`
    targets come together, so that it is divided by so many; by a power of two, to round nothing.
    """

    def __init__(self, *, most_targets: int) -> None:
        self.scale = START
        self.overflows = 0
        self._good = 0  # steps since it was changed
        self._divisor = 2.0 ** math.ceil(math.log2(most_targets))

    @property
    def factor(self) -> float:
        return self.scale / self._divisor

    def overflowed(self, loss: float, norm: float) -> bool:
        if math.isfinite(norm):
            self._good += 1
            if self._good >= GROW_AFTER:
                self.scale, self._good = 2 * self.scale, 0
            return False
        self._good = 0
        # a loss that is not finite was lost before it was multiplied, and below the least scale nothing is won
        if not math.isfinite(loss) or self.scale <= LEAST:
            return False
        self.scale /= 2
        self.overflows += 1
        return True

    def measured(self) -> dict[str, float]:
        return {"loss_scale": self.scale, "overflows": self.overflows}

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "good": self._good, "overflows": self.overflows}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            self.scale, self._good, self.overflows = state["scale"], state["good"], state["overflows"]
