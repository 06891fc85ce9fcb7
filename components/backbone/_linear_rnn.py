"""What our own backbones share: a stack of blocks that each keep a state, between embeddings and a norm.

Shape letters: T packed positions, S sequences, D width, L layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.interfaces import Backbone
from aurora.types import State

from ..kernels.int8 import quantize_linears
from ._layers import Linear, layer_of, stack_layers
from ._packing import Row


class Parts(NamedTuple):
    """What a row passes through."""

    embeddings: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module


class LinearRNN(Backbone):
    """A block takes and gives its state as the named tuple `layer_state`: `forward(x, row, state, return_state)` for
    rows and `step(x, state)` for single positions."""

    layer_state: ClassVar[Any]
    recurrence: ClassVar[str]  # the state that the recurrence sums up, kept in float32 at least
    state_shapes: Mapping[str, tuple[int, ...]]  # by name, after [L, S]

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """Looked up at every use, since adapters and sharding replace modules."""

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.parts.embeddings.weight)  # type: ignore[arg-type]

    def blank_state(self, sequences: int) -> State:
        embeddings, blocks, _ = self.parts
        weight = embeddings.weight
        assert isinstance(weight, Tensor)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {
            name: weight.new_zeros(len(blocks), sequences, *shape,
                                   dtype=wide if name == self.recurrence else weight.dtype)
            for name, shape in self.state_shapes.items()
        }

    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None, *, return_state: bool
    ) -> tuple[Tensor, State | None]:
        _, blocks, norm = self.parts
        row, after = Row.of(cu_seqlens, x.device), []
        for layer, block in enumerate(blocks):
            before = None if state is None else layer_of(self.layer_state, state, layer)
            x, layer_state = block(x, row, before, return_state)
            after.append(layer_state)
        return norm(x), stack_layers(after) if return_state else None

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        _, blocks, norm = self.parts
        after = []
        for layer, block in enumerate(blocks):
            x, layer_state = block.step(x, layer_of(self.layer_state, state, layer))  # type: ignore[operator]
            after.append(layer_state)
        return norm(x), stack_layers(after)

    def quantize(self, kind: str | None) -> None:
        if kind != "int8":
            super().quantize(kind)
        elif any(module.weight.is_meta for module in self.modules() if isinstance(module, Linear)):
            self.register_load_state_dict_post_hook(_round)  # type: ignore[no-untyped-call]
        else:
            _round(self)


def _round(backbone: nn.Module, _: object = None) -> None:
    quantize_linears(backbone, Linear)
