"""Attention of `transformers`' models over packed rows, and their keys and values as our states.

The models call `packed_attention` by its registered name, and hand it the `Packed` that they were called with.

Shape letters: T packed positions, S sequences, n positions of one of them, L layers, H heads, Hk heads of keys and
values, K head width, C capacity of the cache (the longest sequence).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from aurora.errors import AuroraError
from aurora.types import State

NAME = "aurora_packed"


class Packed(Cache):  # type: ignore[misc]
    """Where the sequences of a row lie, what they have read before, and the keys and values that they come to.

    In the place of a cache it is told the new keys and values of every layer.
    """

    def __init__(self, lengths: list[int], state: State | None, keep: bool, device: torch.device) -> None:
        super().__init__(layers=[])
        self.lengths = lengths
        self.state = state
        self.keep = keep
        self.before: list[int] = [0] * len(lengths) if state is None else state["length"][0].tolist()
        new, past = torch.tensor(lengths, device="cpu"), torch.tensor(self.before, device="cpu")
        self.capacity = int((past + new).max())
        starts = new.cumsum(0) - new
        sequence = torch.repeat_interleave(new)
        self.sequence = sequence.to(device)  # [T]
        self.positions = (torch.arange(len(sequence), device="cpu") - (starts - past)[sequence]).to(device)  # [T]
        self.ends = (past + new).to(device)  # [S]
        self.found: dict[str, dict[int, Tensor]] = {"key": {}, "value": {}}
        self.attended: set[int] = set()  # layers whose attention was ours

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
               ) -> tuple[Tensor, Tensor]:
        """[1, Hk, T, K] each: what is new; given back unless a state is read or kept, else [S, C, Hk, K]."""
        if self.state is None and not self.keep:
            return key_states, value_states
        return (self._held("key", key_states, layer_idx), self._held("value", value_states, layer_idx))

    def after(self) -> State:
        """The state after the row."""
        kept = {name: torch.stack([layers[i] for i in sorted(layers)]) for name, layers in self.found.items()}
        return {**kept, "length": self.ends.unsqueeze(0)}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def _held(self, name: str, new: Tensor, layer: int) -> Tensor:
        rows = new[0].transpose(0, 1)  # [T, Hk, K]
        if self.state is None:
            held = rows.new_zeros(len(self.lengths), self.capacity, *rows.shape[1:])
        else:
            past = self.state[name][layer][:, : self.capacity]
            more = self.capacity - past.shape[1]
            held = F.pad(past, (0, 0, 0, 0, 0, more)) if more else past.clone()
        held = held.index_put_((self.sequence, self.positions), rows.to(held.dtype))
        self.found[name][layer] = held
        return held


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    packed: Packed | None = None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:
    """[1, H, T, K] queries over what `Packed.update` gave → [1, T, H, K]. No position sees another sequence's."""
    if not getattr(module, "is_causal", True):
        raise AuroraError("backbone 'transformer': this model type is an encoder, which looks ahead")
    if packed is None or attention_mask is not None:
        raise AuroraError("backbone 'transformer': this model type hides packed rows from its attention")
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise AuroraError("backbone 'transformer': attention with sinks or position biases is not read")
    packed.attended.add(module.layer_idx)  # type: ignore[arg-type]
    attend = partial(_attend, softcap=softcap, scale=scaling, dropout_p=dropout)
    queries = query[0].transpose(0, 1)  # [T, H, K]
    carried = key.shape[0] == len(packed.lengths) and key.dim() == 4 and (packed.state is not None or packed.keep)
    seen: Tensor | None
    if carried and set(packed.lengths) == {1}:
        seen = _seen(packed.positions, packed.capacity, sliding_window)[:, None, None]  # [S, 1, 1, C]
        out = attend(queries.unsqueeze(2), key.transpose(1, 2), value.transpose(1, 2), seen)
        return out.squeeze(2).unsqueeze(0), None
    outs = []
    place = 0
    for s, (before, length) in enumerate(zip(packed.before, packed.lengths, strict=True)):
        own = slice(place, place + length)
        keys = key[s, : before + length].transpose(0, 1) if carried else key[0, :, own]  # [Hk, before + n, K]
        values = value[s, : before + length].transpose(0, 1) if carried else value[0, :, own]
        plain = before == 0 and sliding_window is None and softcap is None
        seen = None if plain else _seen(packed.positions[own], before + length, sliding_window)
        out = attend(queries[own].transpose(0, 1)[None], keys[None], values[None], seen)
        outs.append(out[0].transpose(0, 1))
        place += length
    return torch.cat(outs).unsqueeze(0), None


def _seen(positions: Tensor, keys: int, window: int | None) -> Tensor:
    """[n, keys] boolean: the keys at or before each position, and inside the window."""
    apart = positions[:, None] - torch.arange(keys, device=positions.device)
    return apart >= 0 if window is None else (apart >= 0) & (apart < window)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, *, softcap: float | None, scale: float | None,
            dropout_p: float) -> Tensor:
    """[B, H, n, K] over [B, Hk, m, K] → [B, H, n, K]; without `seen` each of n = m positions sees those up to it."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale,
                                              dropout_p=dropout_p, enable_gqa=q.shape[1] != k.shape[1])
    assert seen is not None
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5) / softcap) * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return F.dropout(weights.to(v.dtype), dropout_p) @ v


AttentionInterface.register(NAME, packed_attention)
