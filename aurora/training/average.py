"""The exponential moving average of what learns: often the better model, at the price of one more copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aurora.training.state import AVERAGE, Named, local


class Average:
    """The average in float32 of every parameter that learns, sharded as they are.

    Step t is weighted by 1 − min(decay, (1 + t) / (10 + t)), so that the beginning is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._values = {name: p.detach().to(torch.float32, copy=True) for name, p in self._parameters.items()}

    def update(self, step: int) -> None:
        """Takes the weights after `step` optimizer steps in."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            averages = [local(value) for value in self._values.values()]
            current = [local(parameter.detach()).float() for parameter in self._parameters.values()]
            torch._foreach_lerp_(averages, current, weight)

    def tensors(self) -> Named:
        """`average.NAME`, as a checkpoint holds them."""
        return {f"{AVERAGE}{name}": value for name, value in self._values.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the averages where the weights are until the block ends."""
        places = [local(parameter.detach()) for parameter in self._parameters.values()]
        weights = [place.clone() for place in places]
        torch._foreach_copy_(places, [local(value) for value in self._values.values()])
        try:
            yield
        finally:
            torch._foreach_copy_(places, weights)

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name, in the dtypes of the parameters."""
        return {name: value.to(self._parameters[name].dtype) for name, value in self._values.items()}
