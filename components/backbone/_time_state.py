"""Tuned initial states as RWKV's authors write them: one `time_state` per layer, inside a checkpoint or alone.

Shape letters: L layers, H heads, K key and value width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.types import State

_SUFFIX = ".att.time_state"


def is_time_state(name: str) -> bool:
    """Whether a tensor of this name is a layer's initial state."""
    return name.endswith(_SUFFIX)


def to_time_states(state: State) -> dict[str, Tensor]:
    """`wkv` [L, 1, H, K, K] (key, value) → blocks.0.att.time_state [H, K, K] (value, key), …; other states stay."""
    tensors = {name: tensor for name, tensor in state.items() if name != "wkv"}
    for layer, memory in enumerate(state.get("wkv", ())):
        tensors[f"blocks.{layer}{_SUFFIX}"] = memory[0].mT.contiguous()
    return tensors


def from_time_states(tensors: Mapping[str, Tensor], like: Tensor) -> State:
    """What `to_time_states` gave; `like` is `wkv` of one sequence. AuroraError when layers or shapes are others."""
    state = {name: tensor for name, tensor in tensors.items() if not is_time_state(name)}
    given = {name: tensor for name, tensor in tensors.items() if is_time_state(name)}
    if not given:
        return state
    names = [f"blocks.{layer}{_SUFFIX}" for layer in range(len(like))]
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if shapes != dict.fromkeys(names, tuple(like.shape[2:])):
        first = next(iter(shapes))
        raise AuroraError(f"{len(shapes)} tuned initial states such as {first} {shapes[first]} do not fit: this "
                          f"backbone has {len(names)} layers of {tuple(like.shape[2:])}")
    state["wkv"] = torch.stack([given[name].float().mT for name in names]).unsqueeze(1)
    return state
