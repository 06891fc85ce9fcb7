"""The contract of language models: packed rows, with the memory of what was read as a value.

Shape letters: T packed positions, S sequences, D backbone width, V vocabulary, L layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aurora.errors import AuroraError, suggest
from aurora.types import State

QUANTIZATIONS = ("int8",)
"""What matrices can be rounded to, where a backbone offers it."""

INITIAL_STATE = "initial_state."
"""What the names of a tuned initial state's parameters begin with, inside the backbone."""


class InitialState(nn.Module):
    """State tuning: parameters [L, 1, ...] that stand in for the zeros of the states of their names."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            wide = torch.promote_types(tensor.dtype, torch.float32)
            self.register_parameter(name, nn.Parameter(tensor.detach().to(wide, copy=True)))

    def forward(self, blank: State) -> State:
        """The state of S sequences that have read nothing, from the backbone's own; gradients reach the parameters.

        A copy: what a caller does with its state must not reach the parameters.
        """
        tuned = self.values()
        return {name: tuned[name].expand_as(tensor).to(tensor.dtype, copy=True) if name in tuned else tensor
                for name, tensor in blank.items()}

    def values(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of their states."""
        return dict(self.named_parameters())


class Backbone(nn.Module, ABC):
    """A causal language model over packed rows with its memory as a value. The constructor is given `vocab_size`."""

    hidden_size: int  # D
    vocab_size: int  # V
    block_class: type[nn.Module]  # what FSDP shards and activation checkpointing recomputes
    constant_state: bool = True  # False only for a transformer kept as a baseline
    initial_state: InitialState | None  # None: sequences start from `blank_state`

    def __init__(self) -> None:
        super().__init__()
        self.initial_state = None

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """[...] int64 → [..., D]."""

    @abstractmethod
    def blank_state(self, sequences: int) -> State:
        """The memory of `sequences` sequences that have read nothing, untuned: named tensors [L, S, ...]."""

    @abstractmethod
    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None, *, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """What `forward` gives, where no state means `blank_state`."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position of S sequences: [S, D] → [S, D] and the next state; the given one is left alone."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] → [..., V]."""

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, State | None]:
        """[T, D] → the hidden states [T, D] that `logits` takes, and each sequence's final state when asked for.

        Sequence s is x[cu_seqlens[s]:cu_seqlens[s + 1]] and continues from state[:, s]; without a state every sequence
        starts from the initial one, which learns if it is tuned. Empty sequences are refused.
        """
        if state is None and self.initial_state is not None:
            state = self.init_state(len(cu_seqlens) - 1, learned=True)
        return self.read(x, cu_seqlens, state, return_state=return_state)

    def prefill(self, x: Tensor, cu_seqlens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """[T, D] → the hidden state after the last position of every sequence [S, D], and the state."""
        hidden, after = self(x, cu_seqlens, state, return_state=True)
        return hidden[cu_seqlens[1:] - 1], after

    def init_state(self, sequences: int, *, learned: bool = False) -> State:
        """The memory of `sequences` sequences that have read nothing: named tensors [L, S, ...].

        With `learned`, gradients reach a tuned initial state. A sharded one is gathered by every call, so every rank
        has to make the same calls.
        """
        blank = self.blank_state(sequences)
        if self.initial_state is None:
            return blank
        with torch.set_grad_enabled(learned and torch.is_grad_enabled()):
            state: State = self.initial_state(blank)
        return state

    def tune_state(self, where: str, names: Sequence[str] | None = None) -> None:
        """Makes the initial values of the named states parameters, starting from what they are.

        None names the largest state, which is the memory of the recurrence. AuroraError that begins with `where` for
        a state that the backbone does not have, or that cannot be learned.
        """
        if not self.constant_state:
            raise AuroraError(f"{where}: the memory of {type(self).__name__} grows with what is read; there is no "
                              "initial state to tune")
        learnable = {name: tensor for name, tensor in self.init_state(1).items() if tensor.is_floating_point()}
        if names is None:
            names = [max(learnable, key=lambda name: learnable[name].numel())]
        for name in names:
            if name not in learnable:
                raise AuroraError(f"{where}: {type(self).__name__} has no state {name!r}.{suggest(name, learnable)}")
        kept = {} if self.initial_state is None else self.initial_state.values()
        self.start_from({**kept, **{name: learnable[name] for name in names}})

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Lets every sequence that is given no state start from these values [L, 1, ...]. AuroraError when they do not
        fit the backbone's own."""
        blank = self.blank_state(1)
        wanted = {name: tuple(tensor.shape) for name, tensor in blank.items()}
        for name, tensor in state.items():
            if tuple(tensor.shape) != wanted.get(name):
                raise AuroraError(f"the initial state {name} {tuple(tensor.shape)} does not fit {type(self).__name__}, "
                                  f"whose states are {', '.join(f'{key} {shape}' for key, shape in wanted.items())}")
        self.initial_state = InitialState({name: tensor.to(blank[name].device) for name, tensor in state.items()})

    def start_like(self, shapes: Mapping[str, Sequence[int]], prefix: str = "backbone.") -> None:
        """Makes room for the initial state that is among a model's saved weights, given by their names and shapes."""
        above = prefix + INITIAL_STATE
        tuned = {name.removeprefix(above): shape for name, shape in shapes.items() if name.startswith(above)}
        if tuned:
            device = next(self.parameters()).device
            self.start_from({name: torch.zeros(*shape, device=device) for name, shape in tuned.items()})

    def runner(self) -> "Runner":
        """What inference reads and steps with, made for the weights as they are: the modules, if nothing is faster."""
        return Runner(self)

    def quantize(self, kind: str | None) -> None:
        """Rounds the matrices, which are most of what is read per token, to "int8", for inference; None does nothing.

        On the meta device it rounds what will be loaded, each part when it is read, so that the model is never held
        whole in another dtype. AuroraError for another kind, or where the backbone does not offer it.
        """
        if kind is None:
            return
        if kind not in QUANTIZATIONS:
            raise AuroraError(f"quantize {kind!r} is unknown.{suggest(kind, QUANTIZATIONS)}")
        raise AuroraError(f"quantize {kind!r}: the layers of backbone {type(self).__name__} cannot be rounded; those "
                          "of Aurora's own recurrent backbones can")

    @abstractmethod
    def reset_parameters(self) -> None:
        """Fills all parameters and buffers as before training: what was built on the meta device starts here."""

    def portable(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options with which a saved model builds this backbone again: no file outside its folder is needed."""
        return options

    @abstractmethod
    def load_base(self, path: str) -> None:
        """Reads pretrained weights from a file or directory in the format of their makers."""

    @abstractmethod
    def save_base(self, path: str) -> None:
        """Writes what `load_base` reads."""

    def export_state(self, state: State) -> dict[str, Tensor]:
        """A tuned initial state [L, 1, ...] as the backbone's makers write it; as it is where they have no form."""
        return dict(state)

    def import_state(self, tensors: Mapping[str, Tensor]) -> State:
        """What `export_state` gives, read back. AuroraError when layers or shapes are others."""
        return dict(tensors)


class Runner:
    """Reads rows and steps sequences for inference, without gradients: what `Backbone.runner` gives.

    A runner is made for fixed weights. It may have laid them out in a way of its own, which the modules compute with
    too. Values that change in place are seen; RuntimeError where modules or weights were replaced or moved, if the
    runner depends on them.
    """

    def __init__(self, backbone: Backbone, reason: str = "") -> None:
        self.backbone = backbone
        self.reason = reason
        """Why the modules are called although the backbone has a faster runner; empty where that is not so."""

    @torch.no_grad()
    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, State | None]:
        """What `Backbone.forward` gives."""
        read: tuple[Tensor, State | None] = self.backbone(x, cu_seqlens, state, return_state=return_state)
        return read

    def prefill(self, x: Tensor, cu_seqlens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """[T, D] → the hidden state after the last position of every sequence [S, D], and the state."""
        hidden, after = self.read(x, cu_seqlens, state)
        assert after is not None
        return hidden[cu_seqlens[1:] - 1], after

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position of S sequences: [S, D] → [S, D] and the next state; the given one is left alone."""
        return self.backbone.step(x, state)
