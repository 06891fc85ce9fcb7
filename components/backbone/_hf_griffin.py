"""The state of RecurrentGemma (Griffin, arXiv 2402.19427): recurrent layers, and attention over a window.

Its recurrent blocks look for their state on themselves; it is put there when a block is called and taken away again
after it, so that nothing stays on the modules between calls.

Shape letters: B sequences of n positions each, D width, W attention window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

from aurora.types import State

from ._hf_memory import Memory, last


class _Window(DynamicSlidingWindowLayer):  # type: ignore[misc]
    """Keys and values of the last W - 1 positions; the unused ones stand first and are masked."""

    def __init__(self, window: int, before: tuple[Tensor, Tensor] | None) -> None:
        super().__init__(sliding_window=window)
        self.before = before
        self.after: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = key_states, value_states
        if self.before is not None:
            keys, values = torch.cat([self.before[0], keys], dim=-2), torch.cat([self.before[1], values], dim=-2)
        self.after = tuple(last(x, self.sliding_window - 1, dim=-2) for x in (keys, values))
        return keys, values


class _Recurrent:
    """What a recurrent block of RecurrentGemma is given, and what it comes to: convolution, recurrence."""

    def __init__(self, before: tuple[Tensor, Tensor] | None) -> None:
        self.before = before
        self.after: tuple[Tensor, ...] = ()


def _enter(block: Any, _: Any, kwargs: dict[str, Any]) -> None:
    """Before a recurrent block: its state, which it looks for on itself."""
    before = _held(block, kwargs).before
    block.conv1d_state, block.rg_lru.recurrent_states = before or (None, None)


def _leave(block: Any, _: Any, kwargs: dict[str, Any], __: Any) -> None:
    """After it: the state goes back, and with it the graph that it hangs on."""
    _held(block, kwargs).after = (block.conv1d_state, block.rg_lru.recurrent_states)
    block.conv1d_state = block.rg_lru.recurrent_states = None


def _held(block: Any, kwargs: dict[str, Any]) -> _Recurrent:
    held: _Recurrent = kwargs["past_key_values"].layers[block.layer]
    return held


class GriffinMemory(Memory):
    """RecurrentGemma: convolution and gated recurrence, and an attention that looks W positions back; how many
    positions were read is an integer."""

    continues = False

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        kinds = body.config.layer_types
        self.recurrent = [i for i, kind in enumerate(kinds) if kind == "linear_attention"]
        self.attending = [i for i, kind in enumerate(kinds) if kind != "linear_attention"]
        for layer in self.recurrent:
            block = body.layers[layer].temporal_block
            block.layer = layer
            block.register_forward_pre_hook(_enter, with_kwargs=True)
            block.register_forward_hook(_leave, with_kwargs=True)

    def shapes(self) -> dict[str, tuple[int, Sequence[int], torch.dtype]]:
        config = self.body[0].config
        shapes: dict[str, tuple[int, Sequence[int], torch.dtype]] = {"read": (1, (), torch.int64)}
        if self.recurrent:
            shapes["conv"] = (len(self.recurrent), (config.lru_width, config.conv1d_width - 1), self.dtype)
            shapes["recurrent"] = (len(self.recurrent), (config.lru_width,), torch.float32)
        if self.attending:
            window = (config.num_key_value_heads, config.sliding_window - 1, config.head_dim)
            shapes["key"] = shapes["value"] = (len(self.attending), window, self.dtype)
        return shapes

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        sequences, length, _ = x.shape
        before = x.new_zeros(sequences, dtype=torch.int64) if state is None else state["read"][0]
        # one position is computed as a step, which needs what came before it
        carried = self.empty(sequences) if state is None and length == 1 else state
        positions = before[:, None] + torch.arange(length, device=x.device)
        cache = Cache(layers=[self._layer(carried, layer) for layer in range(len(self.body[0].layers))])
        hidden = self.body[0](
            inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=keep or carried is not None,
            attention_mask={"sliding_attention": self._mask(positions, carried is not None)},
        ).last_hidden_state
        return hidden, self._after(cache.layers, before + length) if keep else None

    def _mask(self, positions: Tensor, carried: bool) -> Tensor:
        """[B, 1, n, m] boolean: which of the m keys each position sees; those before the text's start are unused."""
        window = self.body[0].config.sliding_window
        kept = window - 1 if carried else 0
        keys = positions[:, :1] + torch.arange(-kept, positions.shape[1], device=positions.device)
        apart = positions[:, :, None] - keys[:, None, :]
        seen: Tensor = (apart >= 0) & (apart < window) & (keys >= 0)[:, None, :]
        return seen.unsqueeze(1)

    def _layer(self, state: State | None, layer: int) -> Any:
        recurrent = layer in self.recurrent
        own = self.recurrent if recurrent else self.attending
        first, second = ("conv", "recurrent") if recurrent else ("key", "value")
        given = None if state is None else (state[first][own.index(layer)], state[second][own.index(layer)])
        return _Recurrent(given) if recurrent else _Window(self.body[0].config.sliding_window, given)

    def _after(self, layers: Sequence[Any], read: Tensor) -> State:
        found = {"read": [read]}
        for names, own in ((("conv", "recurrent"), self.recurrent), (("key", "value"), self.attending)):
            for place, name in enumerate(names):
                found[name] = [layers[layer].after[place] for layer in own]
        return self.gathered(found)
