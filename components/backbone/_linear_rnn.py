"""What our own backbones share: packed rows, and a stack of blocks that each keep a state.

Shape letters: T packed positions, S sequences, D width, L layers, E channels, W positions that a convolution sees.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from aurora.interfaces import Backbone
from aurora.types import State
from aurora.weights.convert import load_base, open_source
from aurora.weights.layouts import Family
from aurora.weights.loading import write_tensors

from ..kernels.linear import quantize_linears
from ._layers import Linear

ConvSize = Annotated[int, Ge(2)]
Operator = Callable[..., tuple[Tensor, "Tensor | None"]]


class Row(NamedTuple):
    """Sequences one behind the other."""

    cu_seqlens: Tensor  # [S + 1] on the CPU: kernels lay out their work by it, and should not wait for a device
    first: Tensor  # [S] position of the first token of each sequence
    last: Tensor  # [S] position of the last one
    keeps: bool  # whether the states after the row are asked for

    @classmethod
    def of(cls, cu_seqlens: Tensor, device: torch.device, keeps: bool) -> "Row":
        bounds = cu_seqlens.cpu()
        return cls(bounds, bounds[:-1].to(device), (bounds[1:] - 1).to(device), keeps)

    def shift(self, x: Tensor, before: Tensor | None) -> Tensor:
        """[T, D]: what stood before each position; `before` [S, D] (or zero) at the start of each sequence."""
        if before is None:
            before = x.new_zeros(len(self.first), x.shape[-1])
        return torch.cat([x[:1], x[:-1]]).index_copy(0, self.first, before.to(x.dtype))

    def window(self, x: Tensor, before: Tensor | None, size: int) -> list[Tensor]:
        """What a short causal convolution over x [T, E] sees, which follows `before` [S, W - 1, E], the latest last, or
        zeros: W tensors [T, E], what stood 0, 1, … W - 1 positions before each one."""
        seen = [x]
        for back in range(1, size):
            seen.append(self.shift(seen[-1], None if before is None else before[:, -back]))
        return seen

    def end(self, x: Tensor) -> Tensor:
        """[T, …] → [S, …]: at the last position of each sequence."""
        return x[self.last]

    def recur(self, operator: Operator, step: Operator, *inputs: Tensor, state: Tensor | None
              ) -> tuple[Tensor, Tensor | None]:
        """A recurrence over inputs [T, …] from a state [S, …]: what it gives [T, …] and the state after it, if kept."""
        return operator(*inputs, self.cu_seqlens, state, return_state=self.keeps)


class OnePosition:
    """One position of every sequence in the place of a row, T = S, where there always is a state."""

    def shift(self, x: Tensor, before: Any) -> Tensor:
        shifted: Tensor = before
        return shifted

    def window(self, x: Tensor, before: Any, size: int) -> list[Tensor]:
        return [x, *before.to(x.dtype).flip(1).unbind(1)]

    def end(self, x: Tensor) -> Tensor:
        return x

    def recur(self, operator: Operator, step: Operator, *inputs: Tensor, state: Any) -> tuple[Tensor, Tensor | None]:
        return step(*inputs, state)


Span = Row | OnePosition

class LinearRNN(Backbone):
    """A stack of blocks, called as `block(x, *carried, row=row, state=state)` with a `Row` or `OnePosition` and the
    state of the layer by name, empty at the start; it gives x, what is carried, and the layer's next state, which is
    empty where none is kept."""

    layouts: ClassVar[Family]  # of the checkpoints that `load_base` reads
    recurrence: ClassVar[str]  # the state that the recurrence sums up, kept in float32 at least
    part_names: ClassVar[tuple[str, str, str]]  # of embeddings, blocks and last norm
    carried: ClassVar[tuple[None, ...]] = ()  # what the first block is given after x; every block passes its own on

    def __init__(self, vocab_size: int, hidden_size: int, state_shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`state_shapes` by name, after [L, S]."""
        super().__init__()
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.state_shapes = state_shapes

    @property
    def parts(self) -> tuple[Any, ...]:
        """Embeddings, blocks and last norm, looked up at every use, since adapters and sharding replace modules."""
        return tuple(getattr(self, name) for name in self.part_names)

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.parts[0].weight)

    def blank_state(self, sequences: int) -> State:
        embeddings, blocks, _ = self.parts
        weight: Tensor = embeddings.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {
            name: weight.new_zeros(len(blocks), sequences, *shape,
                                   dtype=wide if name == self.recurrence else weight.dtype)
            for name, shape in self.state_shapes.items()
        }

    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None, *, return_state: bool
    ) -> tuple[Tensor, State | None]:
        hidden, after = self._pass(x, Row.of(cu_seqlens, x.device, return_state), state or {})
        return hidden, after if return_state else None

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._pass(x, OnePosition(), state)

    def _pass(self, x: Tensor, row: Span, state: State) -> tuple[Tensor, State]:
        _, blocks, norm = self.parts
        carried, after = self.carried, []
        for layer, block in enumerate(blocks):
            before = {name: tensor[layer] for name, tensor in state.items()}
            x, *carried, layer_state = block(x, *carried, row=row, state=before)
            after.append(layer_state)
        return norm(x), {name: torch.stack([layer_state[name] for layer_state in after]) for name in after[0]}

    def load_base(self, path: str) -> None:
        """Reads a checkpoint in any layout of `aurora convert`."""
        load_base(self, open_source(path, self.layouts))

    def save_base(self, path: str) -> None:
        """Writes what `load_base` reads: `.pth` or `.safetensors` by the ending of the path."""
        write_tensors({self.makers_name(name): tensor for name, tensor in self.state_dict().items()}, path)

    def makers_name(self, name: str) -> str:
        """Of a parameter, in the files that `load_base` reads."""
        return name

    def quantize(self, kind: str | None) -> None:
        if kind != "int8":
            super().quantize(kind)
        elif any(module.weight.is_meta for module in self.modules() if isinstance(module, Linear)):
            self.register_load_state_dict_post_hook(_round)  # type: ignore[no-untyped-call]
        else:
            _round(self)


def _round(backbone: nn.Module, _: object = None) -> None:
    quantize_linears(backbone, Linear)


def convolve(window: list[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every channel by itself: weight [E, 1, W] as in Conv1d with one group per channel, bias [E] → [T, E]."""
    nearest, *others = weight[:, 0].flip(-1).unbind(-1)
    total = window[0] * nearest if bias is None else torch.addcmul(bias, window[0], nearest)
    for tap, x in zip(others, window[1:], strict=True):
        total = torch.addcmul(total, x, tap)
    return total


def latest(window: list[Tensor], row: Span) -> Tensor:
    """[S, W - 1, E], the state after the positions of a window: the oldest drops out."""
    return torch.stack([row.end(x) for x in window[-2::-1]], dim=1)
