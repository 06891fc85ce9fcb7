"""State tuning: the state that a sequence starts from, as learned parameters of a backbone.

Shape letters: L layers, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from aurora.errors import AuroraError, suggest
from aurora.interfaces import Backbone
from aurora.types import State

ATTRIBUTE = "initial_state"
PREFIX = f"{ATTRIBUTE}."

_Blank = Callable[[int], State]
_Read = tuple[Tensor, "State | None"]


class InitialState(nn.Module):
    """Parameters [L, 1, ...] that stand in for the zeros of the states of their names."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            wide = torch.promote_types(tensor.dtype, torch.float32)
            self.register_parameter(name, nn.Parameter(tensor.detach().to(wide, copy=True)))

    def forward(self, blank: State) -> State:
        """The state of S sequences that have read nothing, from the backbone's own; gradients reach the parameters.

        A copy: what a caller does with its state must not reach the parameters.
        """
        tuned = dict(self.named_parameters())
        return {name: tuned[name].expand_as(tensor).to(tensor.dtype, copy=True) if name in tuned else tensor
                for name, tensor in blank.items()}


def tuned_state(backbone: nn.Module) -> InitialState | None:
    """The backbone's tuned initial state, if it has one."""
    found = getattr(backbone, ATTRIBUTE, None)
    return found if isinstance(found, InitialState) else None


def tune_state(where: str, backbone: Backbone, names: Sequence[str] | None = None) -> None:
    """Makes the initial values of the named states parameters, starting from what they are.

    None names the largest state, which is the memory of the recurrence. AuroraError for a state that the backbone
    does not have, or that cannot be learned.
    """
    if not backbone.constant_state:
        raise AuroraError(f"{where}: the memory of {type(backbone).__name__} grows with what is read; there is no "
                          "initial state to tune")
    blank = backbone.init_state(1)
    learnable = {name: tensor for name, tensor in blank.items() if tensor.is_floating_point()}
    if names is None:
        names = [max(learnable, key=lambda name: learnable[name].numel())]
    for name in names:
        if name not in learnable:
            raise AuroraError(f"{where}: {type(backbone).__name__} has no state {name!r}.{suggest(name, learnable)}")
    before = tuned_state(backbone)
    kept = {} if before is None else dict(before.named_parameters())
    start_from(backbone, {**kept, **{name: learnable[name] for name in names}})


def start_from(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Lets every sequence that is given no state start from these values [L, 1, ...]. AuroraError when they do not
    fit the backbone's own."""
    blank = backbone.init_state(1)
    wanted = {name: tuple(tensor.shape) for name, tensor in blank.items()}
    for name, tensor in state.items():
        if tuple(tensor.shape) != wanted.get(name):
            raise AuroraError(f"the initial state {name} {tuple(tensor.shape)} does not fit {type(backbone).__name__}, "
                              f"whose states are {', '.join(f'{key} {shape}' for key, shape in wanted.items())}")
    fresh = tuned_state(backbone) is None
    setattr(backbone, ATTRIBUTE, InitialState({name: tensor.to(blank[name].device) for name, tensor in state.items()}))
    if fresh:
        untuned, forward = backbone.init_state, backbone.forward
        backbone.init_state = partial(_init_state, backbone, untuned)  # type: ignore[method-assign]
        backbone.forward = partial(_forward, backbone, untuned, forward)  # type: ignore[method-assign]


def start_like(backbone: Backbone, weights: Mapping[str, Sequence[int]]) -> None:
    """Makes room for the initial state that a model's saved weights hold, given by their names and shapes."""
    above = f"backbone.{PREFIX}"
    shapes = {name.removeprefix(above): shape for name, shape in weights.items() if name.startswith(above)}
    if shapes:
        device = next(backbone.parameters()).device
        start_from(backbone, {name: torch.zeros(*shape, device=device) for name, shape in shapes.items()})


@torch.no_grad()
def _init_state(backbone: Backbone, untuned: _Blank, sequences: int) -> State:
    """Takes the place of a backbone's `init_state`: what is read with it is not learned from."""
    return _tuned(backbone, untuned, sequences)


def _forward(backbone: Backbone, untuned: _Blank, forward: Callable[..., _Read], x: Tensor, cu_seqlens: Tensor,
             state: State | None = None, **options: bool) -> _Read:
    """Takes the place of a backbone's `forward`: no state given means the tuned one, which is learned from."""
    return forward(x, cu_seqlens, _tuned(backbone, untuned, len(cu_seqlens) - 1) if state is None else state, **options)


def _tuned(backbone: Backbone, untuned: _Blank, sequences: int) -> State:
    tuned = tuned_state(backbone)
    assert tuned is not None
    state: State = tuned(untuned(sequences))
    return state
