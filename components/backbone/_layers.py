"""What linear RNNs share: an empty projection, states of layers, and the check of sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from aurora.errors import AuroraError
from aurora.types import State

LayerState = TypeVar("LayerState")


class Linear(nn.Linear):
    """A projection without bias, left empty: its model fills all parameters at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        pass


def layer_of(kind: Callable[..., LayerState], state: State, layer: int) -> LayerState:
    """The state of one layer, as a named tuple whose fields are the names of the state."""
    return kind(**{name: tensor[layer] for name, tensor in state.items()})


def stack_layers(layers: list[Any]) -> State:
    """The states of all layers, [L, S, ...]."""
    return {name: torch.stack([getattr(layer, name) for layer in layers]) for name in layers[0]._fields}


def check_sizes(backbone: str, **sizes: int) -> None:
    """AuroraError for a size below one."""
    for name, value in sizes.items():
        if value < 1:
            raise AuroraError(f"backbone {backbone!r}: {name} must be at least 1, not {value}")
