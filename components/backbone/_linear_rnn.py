"""What our own backbones share: packed rows, and a stack of blocks that each keep a state.

Shape letters: T packed positions, S sequences, D width, L layers, E channels, W positions that a convolution sees.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from aurora.interfaces import Backbone
from aurora.types import State

from ..kernels.linear import quantize_linears
from ._layers import Linear

LayerState = TypeVar("LayerState")
ConvSize = Annotated[int, Ge(2)]


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
    carried: ClassVar[tuple[None, ...]] = ()  # what the first block is given after x; every block passes its own on

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
        row, carried, after = Row.of(cu_seqlens, x.device), self.carried, []
        for layer, block in enumerate(blocks):
            before = None if state is None else layer_of(self.layer_state, state, layer)
            x, *carried, layer_state = block(x, *carried, row, before, return_state)
            after.append(layer_state)
        return norm(x), stack_layers(after) if return_state else None

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        _, blocks, norm = self.parts
        carried, after = self.carried, []
        for layer, block in enumerate(blocks):
            before = layer_of(self.layer_state, state, layer)
            x, *carried, layer_state = block.step(x, *carried, before)  # type: ignore[operator]
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


def row_window(x: Tensor, row: Row, before: Tensor | None, size: int) -> list[Tensor]:
    """What a short causal convolution over a packed row x [T, E] sees, which follows `before` [S, W - 1, E], the latest
    last, or zeros: W tensors [T, E], what stood 0, 1, … W - 1 positions before each one."""
    seen = [x]
    for back in range(1, size):
        seen.append(row.shift(seen[-1], None if before is None else before[:, -back]))
    return seen


def step_window(x: Tensor, before: Tensor) -> list[Tensor]:
    """The window of one position x [S, E] of every sequence."""
    return [x, *before.to(x.dtype).flip(1).unbind(1)]


def convolve(window: list[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every channel by itself: weight [E, 1, W] as in Conv1d with one group per channel, bias [E] → [T, E]."""
    nearest, *others = weight[:, 0].flip(-1).unbind(-1)
    total = window[0] * nearest if bias is None else torch.addcmul(bias, window[0], nearest)
    for tap, x in zip(others, window[1:], strict=True):
        total = torch.addcmul(total, x, tap)
    return total


def latest(window: list[Tensor]) -> Tensor:
    """[S, W - 1, E], the state after the positions of a window: the oldest drops out."""
    return torch.stack(window[-2::-1], dim=1)


def layer_of(kind: Callable[..., LayerState], state: State, layer: int) -> LayerState:
    """The state of one layer, as a named tuple whose fields are the names of the state."""
    return kind(**{name: tensor[layer] for name, tensor in state.items()})


def stack_layers(layers: list[Any]) -> State:
    """The states of all layers, [L, S, ...]."""
    return {name: torch.stack([getattr(layer, name) for layer in layers]) for name in layers[0]._fields}
