"""Recurrent language models of `transformers`.

Shape letters: T packed positions, S sequences, B sequences of one batch of n positions, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.types import State, join_states, select_state

from ..kernels._grid import sequence_lengths
from ._hf import Hosted
from ._hf_memory import GriffinMemory, MambaMemory, Memory, XlstmMemory

FAMILIES: Mapping[str, Callable[[nn.Module], Memory]] = {
    "falcon_mamba": MambaMemory,
    "mamba": MambaMemory,
    "mamba2": MambaMemory,
    "recurrent_gemma": GriffinMemory,
    "xlstm": XlstmMemory,
}
"""Model types whose whole memory is of constant size."""
# a batch is padded at its end to its longest sequence; the shortest is at least this share of it
LEAST_SHARE = 0.5


@BACKBONE.register
class HF(Hosted):
    """Any recurrent LM of `transformers` whose memory is constant: Mamba, Mamba-2, Falcon-Mamba, RecurrentGemma, xLSTM.

    Its architecture is that of the folder `path` (weights are read by `base_weights.backbone.hf`, which is the same
    folder unless something else is said), or of `model_type` with our three sizes and any option of its own in
    `config`. Families without heads take no notice of `head_size`.

    Exact, not fast: these models read batches, not packed rows. Sequences of a row are read in batches of like
    lengths, padded by at most the half, or of equal lengths when their states are asked for. Mamba, Falcon-Mamba and
    RecurrentGemma cannot read several positions from a state; what follows one is read position by position.
    """

    name = "hf"
    default_type = "mamba2"

    def _check(self, config: Any) -> None:
        """AuroraError for a model whose memory is not constant, or that does not belong to one of the families."""
        if config.model_type in FAMILIES:
            return
        known = ", ".join(FAMILIES)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if "linear_attention" in kinds or "hybrid" in kinds or "mamba" in kinds:
            raise AuroraError(f"backbone 'hf': {config.model_type} mixes recurrent layers with attention, so its "
                              f"memory grows with what it reads; constant are {known}")
        if config.model_type == "rwkv":
            raise AuroraError("backbone 'hf': RWKV-4 of transformers is not read; take backbone=rwkv6 or rwkv7, or one "
                              f"of {known}")
        raise AuroraError(f"backbone 'hf': {config.model_type} is not recurrent; take backbone=transformer for it, or "
                          f"one of {known}")

    def _built(self) -> None:
        self.memory = FAMILIES[self.config.model_type](self.body)

    def blank_state(self, sequences: int) -> State:
        return self.memory.empty(sequences)

    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None, *, return_state: bool
    ) -> tuple[Tensor, State | None]:
        lengths = sequence_lengths(cu_seqlens, len(x))
        if state is not None and not self.memory.continues:
            # nothing was read yet where all is zero; a state that is learned counts as read from the start
            if any(tensor.requires_grad or bool(tensor.any()) for tensor in state.values()):
                hidden, after = read_steps(self.memory, x, lengths, state)
                return hidden.to(x.dtype), after if return_state else None
            state = None
        hidden, ended = read_batches(self.memory, x, lengths, state, return_state)
        return hidden.to(x.dtype), ended

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, after = self.memory.read(x.unsqueeze(1), state, True)
        return hidden.squeeze(1).to(x.dtype), after


def batches(lengths: Sequence[int], *, equal: bool) -> list[list[int]]:
    """Sequences sorted into batches, the longest of each first: of equal lengths, or of lengths near enough to pad."""
    found: list[list[int]] = []
    share = 1 if equal else LEAST_SHARE
    for s in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
        if found and lengths[s] >= share * lengths[found[-1][0]]:
            found[-1].append(s)
        else:
            found.append([s])
    return found


def read_batches(memory: Memory, x: Tensor, lengths: Sequence[int], state: State | None, keep: bool
                 ) -> tuple[Tensor, State | None]:
    """[T, D] → [T, D] and the states [S] when `keep`. What is padded stands after a sequence, where nothing of it
    looks; but a state would have read it, so states are kept of batches of equal lengths only."""
    parts = list(torch.split(x, list(lengths)))
    order: list[int] = []
    states = []
    for batch in batches(lengths, equal=keep):
        rows = torch.stack([F.pad(parts[s], (0, 0, 0, lengths[batch[0]] - lengths[s])) for s in batch])
        hidden, after = memory.read(rows, None if state is None else select_state(state, batch), keep)
        for row, s in enumerate(batch):
            parts[s] = hidden[row, : lengths[s]]
        order += batch
        states.append(after)
    return torch.cat(parts), select_state(join_states(states), torch.tensor(order).argsort()) if keep else None


def read_steps(memory: Memory, x: Tensor, lengths: Sequence[int], state: State) -> tuple[Tensor, State]:
    """[T, D] → [T, D] and the states [S], one position of all sequences at a time; those that end drop out."""
    order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    starts = torch.tensor([0, *lengths], device=x.device).cumsum(0)[order]
    state, ended, steps, places = select_state(state, order), [], [], []
    reading = len(order)
    for t in range(lengths[order[0]]):
        going = sum(lengths[s] > t for s in order[:reading])
        if going < reading:
            ended.append(select_state(state, range(going, reading)))
            state, reading = select_state(state, range(going)), going
        places.append(starts[:going] + t)
        hidden, state = memory.read(x[places[-1]].unsqueeze(1), state, True)
        steps.append(hidden[:, 0])
    row = torch.cat(steps)
    return torch.empty_like(row).index_copy(0, torch.cat(places), row), select_state(
        join_states([state, *reversed(ended)]), torch.tensor(order).argsort())
