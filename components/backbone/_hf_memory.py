"""The caches of recurrent models of `transformers` as our states: given, read from, and given back anew.

Their layers write into the tensors of a cache. Here a cache hands out tensors that note what is written instead, so
that a state is left alone and gradients flow through it.

Shape letters: B sequences of n positions each, L layers of a kind, D width, C channels, H heads, K head width,
W attention window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, LinearAttentionLayer

from aurora.types import State


class Noted(Tensor):
    """A tensor of a cache: `copy_` into it is noted as `written`, and its own values stay."""

    written: Tensor | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_ and isinstance(args[0], Noted):
            args[0].written = args[1]
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def note(tensor: Tensor) -> Tensor:
    """What a cache hands out for a tensor of a state; a kernel may overwrite the memory of it."""
    noted: Tensor = tensor.clone().as_subclass(Noted)
    return noted


def noted(tensor: Tensor) -> Tensor:
    """What a layer left in the cache."""
    if not isinstance(tensor, Noted):
        return tensor
    return tensor.as_subclass(Tensor) if tensor.written is None else tensor.written


class Memory(ABC):
    """How one family of models keeps its state."""

    continues: bool
    """Whether several positions can be read at once from a state that is not the initial one."""

    def __init__(self, body: Any) -> None:
        self.body = (body,)  # in a tuple it is no submodule of whoever holds this

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, Sequence[int], torch.dtype]]:
        """Per tensor of a state: its layers, its shape after [L, S], its dtype."""

    @abstractmethod
    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        """[B, n, D] → [B, n, D], and the state after the last position when `keep`; none given means the initial
        one."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        dtype: torch.dtype = self.body[0].get_input_embeddings().weight.dtype
        return dtype

    @property
    def wide(self) -> torch.dtype:
        """That of what is summed up over time."""
        return torch.promote_types(self.dtype, torch.float32)

    def empty(self, sequences: int) -> State:
        """The state of sequences that have read nothing."""
        weight = self.body[0].get_input_embeddings().weight
        return {name: weight.new_zeros(layers, sequences, *shape, dtype=dtype)
                for name, (layers, shape, dtype) in self.shapes().items()}

    def gathered(self, found: Mapping[str, list[Tensor]]) -> State:
        """The layers' tensors as one state."""
        return {name: torch.stack(found[name]).to(dtype) for name, (_, _, dtype) in self.shapes().items()}


class _CarriedLayer(LinearAttentionLayer):  # type: ignore[misc]
    """A layer of a cache that replaces its tensors where that of `transformers` overwrites them."""

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None,
                          **_: Any) -> Tensor:
        before = self.conv_states[state_idx]
        full = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        size = full.shape[-1] if conv_kernel_size is None else conv_kernel_size
        self.conv_states[state_idx] = F.pad(full, (max(0, size - full.shape[-1]), 0))[..., -size:]
        return full

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class MambaMemory(Memory):
    """Mamba, Mamba-2 and Falcon-Mamba: the last inputs of the convolution, and the state of the recurrence."""

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        # the scan of the first Mamba starts at zero, whatever the cache holds
        self.continues = body.config.model_type == "mamba2"

    def shapes(self) -> dict[str, tuple[int, Sequence[int], torch.dtype]]:
        layers = self.body[0].layers
        mixer = layers[0].mixer
        recurrent = tuple(mixer.A_log.shape)
        if self.continues:
            recurrent = (mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
        conv = (mixer.conv1d.in_channels, mixer.conv_kernel_size)
        return {"conv": (len(layers), conv, self.dtype), "recurrent": (len(layers), recurrent, self.wide)}

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        cache = None
        if keep or state is not None:
            cache = Cache(layers=[self._layer(state, i) for i in range(len(self.body[0].layers))])
        hidden = self.body[0](inputs_embeds=x, cache_params=cache, use_cache=cache is not None).last_hidden_state
        if cache is None or not keep:
            return hidden, None
        conv = [noted(layer.conv_states[0]) for layer in cache.layers]
        return hidden, self.gathered(
            {"conv": conv, "recurrent": [noted(layer.recurrent_states[0]) for layer in cache.layers]}
        )

    def _layer(self, state: State | None, index: int) -> _CarriedLayer:
        layer = _CarriedLayer()
        if state is not None:
            layer.conv_states[0] = note(state["conv"][index])
            layer.recurrent_states[0] = note(state["recurrent"][index])
            layer.has_previous_state[0] = True
        return layer


class _Window(DynamicSlidingWindowLayer):  # type: ignore[misc]
    """Keys and values of the last W - 1 positions; the unused ones stand first and are masked."""

    def __init__(self, window: int, keys: Tensor | None, values: Tensor | None) -> None:
        super().__init__(sliding_window=window)
        self.before = None if keys is None or values is None else (keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        full = new if self.before is None else tuple(
            torch.cat(pair, dim=-2) for pair in zip(self.before, new, strict=True))
        size = self.sliding_window - 1
        self.keys, self.values = (
            F.pad(x, (0, 0, max(0, size - x.shape[-2]), 0))[..., max(0, x.shape[-2] - size):, :] for x in full
        )
        return full[0], full[1]


class GriffinMemory(Memory):
    """RecurrentGemma: convolution and gated recurrence, and an attention that looks W positions back; how many
    positions were read is an integer."""

    continues = False

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        kinds = body.config.layer_types
        self.recurrent = [i for i, kind in enumerate(kinds) if kind == "linear_attention"]
        self.attending = [i for i, kind in enumerate(kinds) if kind != "linear_attention"]

    def shapes(self) -> dict[str, tuple[int, Sequence[int], torch.dtype]]:
        config = self.body[0].config
        window = (config.num_key_value_heads, config.sliding_window - 1, config.head_dim)
        shapes: dict[str, tuple[int, Sequence[int], torch.dtype]] = {"read": (1, (), torch.int64)}
        if self.recurrent:
            conv = (config.lru_width, config.conv1d_width - 1)
            shapes["conv"] = (len(self.recurrent), conv, self.dtype)
            shapes["recurrent"] = (len(self.recurrent), (config.lru_width,), torch.float32)
        if self.attending:
            shapes["key"] = shapes["value"] = (len(self.attending), window, self.dtype)
        return shapes

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        sequences, length, _ = x.shape
        before = x.new_zeros(sequences, dtype=torch.int64) if state is None else state["read"][0]
        # one position is computed as a step, which needs what came before it
        carried = self.empty(sequences) if state is None and length == 1 else state
        positions = before[:, None] + torch.arange(length, device=x.device)
        window = self.body[0].config.sliding_window
        cache = Cache(layers=self._windows(window, carried))
        self._enter(carried)
        try:
            hidden = self.body[0](
                inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=keep or carried is not None,
                attention_mask={"sliding_attention": self._mask(positions, window, carried is not None)},
            ).last_hidden_state
            return hidden, self._leave(cache, before + length) if keep else None
        finally:
            self._clear()

    def _mask(self, positions: Tensor, window: int, carried: bool) -> Tensor:
        """[B, 1, n, m] boolean: which of the m keys each position sees; those before the text's start are unused."""
        first = positions[:, :1]
        kept = window - 1 if carried else 0
        keys = first + torch.arange(-kept, positions.shape[1], device=positions.device)
        apart = positions[:, :, None] - keys[:, None, :]
        return ((apart >= 0) & (apart < window) & (keys >= 0)[:, None, :]).unsqueeze(1)

    def _windows(self, window: int, state: State | None) -> list[Any]:
        windows = []
        for index in range(len(self.body[0].layers)):
            given = None if state is None or index not in self.attending else self.attending.index(index)
            keys, values = (None, None) if given is None or state is None else (state["key"][given],
                                                                                state["value"][given])
            windows.append(_Window(window, keys, values))
        return windows

    def _enter(self, state: State | None) -> None:
        for place, layer in enumerate(self.recurrent):
            block = self.body[0].layers[layer].temporal_block
            block.conv1d_state = None if state is None else state["conv"][place]
            block.rg_lru.recurrent_states = None if state is None else state["recurrent"][place]

    def _leave(self, cache: Any, read: Tensor) -> State:
        blocks = [self.body[0].layers[layer].temporal_block for layer in self.recurrent]
        found = {"read": [read]}
        found["conv"] = [block.conv1d_state for block in blocks]
        found["recurrent"] = [block.rg_lru.recurrent_states for block in blocks]
        found["key"] = [cache.layers[layer].keys for layer in self.attending]
        found["value"] = [cache.layers[layer].values for layer in self.attending]
        return self.gathered(found)

    def _clear(self) -> None:
        """Takes the last call's tensors, and with them its graph, off the modules."""
        for layer in self.recurrent:
            block = self.body[0].layers[layer].temporal_block
            block.conv1d_state = block.rg_lru.recurrent_states = None


class XlstmMemory(Memory):
    """xLSTM: the matrix memory of every head, its normaliser and its stabiliser."""

    continues = True

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        # longer inputs would be read without gradients
        body.config.max_inference_chunksize = 1 << 62

    def shapes(self) -> dict[str, tuple[int, Sequence[int], torch.dtype]]:
        layers, layer = len(self.body[0].blocks), self.body[0].blocks[0].mlstm_layer
        heads = layer.config.num_heads
        key, value = layer.qk_dim // heads, layer.v_dim // heads
        shapes = {"memory": (heads, key, value), "normaliser": (heads, key), "stabiliser": (heads, 1)}
        return {name: (layers, shape, self.wide) for name, shape in shapes.items()}

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        if state is None:
            state = self.empty(len(x))
        names, layers = list(self.shapes()), range(len(self.body[0].blocks))
        handed = {layer: tuple(note(state[name][layer]) for name in names) for layer in layers}
        cache = SimpleNamespace(seqlen_offset=0, rnn_state=handed)
        hidden = self.body[0](inputs_embeds=x, cache_params=cache, use_cache=True).last_hidden_state
        if not keep:
            return hidden, None
        return hidden, self.gathered(
            {name: [noted(handed[layer][place]) for layer in layers] for place, name in enumerate(names)}
        )


FAMILIES: Mapping[str, Callable[[nn.Module], Memory]] = {
    "falcon_mamba": MambaMemory,
    "mamba": MambaMemory,
    "mamba2": MambaMemory,
    "recurrent_gemma": GriffinMemory,
    "xlstm": XlstmMemory,
}
"""Model types whose whole memory is of constant size."""
