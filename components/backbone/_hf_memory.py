"""The caches of recurrent models of `transformers` as our states: given, read from, and given back anew.

Their layers write into the tensors of a cache. Here a cache hands out tensors that note what is written instead, so
that a state is left alone and gradients flow through it.

Shape letters: B sequences of n positions each, L layers of a kind, D width, W attention window.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
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
        self.body = (body,)  # in a tuple it is not a submodule of its holder

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, Sequence[int], torch.dtype]]:
        """Per tensor of a state: its layers, its shape after [L, S], its dtype."""

    @abstractmethod
    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State]:
        """[B, n, D] → [B, n, D], and the state after the last position, empty unless `keep`; none given means the
        initial one."""

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
    """A layer of a cache that keeps both what it was given and what it comes to, so that a block can be computed again.
    """

    def __init__(self, conv: Tensor | None = None, recurrent: Tensor | None = None) -> None:
        super().__init__()
        self.after: dict[str, Tensor] = {}
        if conv is not None and recurrent is not None:
            self.conv_states[0], self.recurrent_states[0] = note(conv), note(recurrent)
            self.has_previous_state[0] = True

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None,
                          **_: Any) -> Tensor:
        before = self.conv_states[state_idx]
        full = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        self.after["conv"] = last(full, full.shape[-1] if conv_kernel_size is None else conv_kernel_size)
        return full

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.after["recurrent"] = recurrent_states
        return recurrent_states

    def left(self, name: str) -> Tensor:
        """What the model came to: passed to an update, or else written into what was given."""
        given: Tensor = (self.conv_states if name == "conv" else self.recurrent_states)[0]
        return self.after[name] if name in self.after else noted(given)


def last(x: Tensor, size: int, dim: int = -1) -> Tensor:
    """The last entries along a dimension, with zeros before them when there are not enough."""
    missing = max(0, size - x.shape[dim])
    padded = F.pad(x, (0, 0) * (-1 - dim) + (missing, 0))
    return padded.narrow(dim, padded.shape[dim] - size, size)


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

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State]:
        cache = None
        if keep or state is not None:
            given = [()] * len(self.body[0].layers) if state is None else zip(
                state["conv"], state["recurrent"], strict=True)
            cache = Cache(layers=[_CarriedLayer(*tensors) for tensors in given])
        hidden = self.body[0](inputs_embeds=x, cache_params=cache, use_cache=cache is not None).last_hidden_state
        if cache is None or not keep:
            return hidden, {}
        return hidden, self.gathered({name: [layer.left(name) for layer in cache.layers] for name in self.shapes()})


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

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State]:
        if state is None:
            state = self.empty(len(x))
        names, layers = list(self.shapes()), range(len(self.body[0].blocks))
        handed = {layer: tuple(note(state[name][layer]) for name in names) for layer in layers}
        cache = SimpleNamespace(seqlen_offset=0, rnn_state=handed)
        hidden = self.body[0](inputs_embeds=x, cache_params=cache, use_cache=True).last_hidden_state
        if not keep:
            return hidden, {}
        return hidden, self.gathered(
            {name: [noted(handed[layer][place]) for layer in layers] for place, name in enumerate(names)}
        )


class _Window(DynamicSlidingWindowLayer):  # type: ignore[misc]
    """Keys and values of the last W - 1 positions; the unused ones stand first and are masked."""

    def __init__(self, window: int, before: tuple[Tensor, ...] | None) -> None:
        super().__init__(sliding_window=window)
        self.before = before
        self.after: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = key_states, value_states
        if self.before is not None:
            keys, values = torch.cat([self.before[0], keys], dim=-2), torch.cat([self.before[1], values], dim=-2)
        self.after = tuple(last(x, self.sliding_window - 1, dim=-2) for x in (keys, values))
        return keys, values


def _enter(block: Any, _: Any, kwargs: dict[str, Any]) -> None:
    """Before a recurrent block: its state, which it looks for on itself."""
    held = kwargs["past_key_values"].layers[block.layer]
    block.conv1d_state, block.rg_lru.recurrent_states = held.before or (None, None)


def _leave(block: Any, _: Any, kwargs: dict[str, Any], __: Any) -> None:
    """After it: the state goes back, and with it the graph that it hangs on."""
    kwargs["past_key_values"].layers[block.layer].after = (block.conv1d_state, block.rg_lru.recurrent_states)
    block.conv1d_state = block.rg_lru.recurrent_states = None


class GriffinMemory(Memory):
    """RecurrentGemma (Griffin, arXiv 2402.19427): convolution and gated recurrence, and an attention that looks W
    positions back; how many positions were read is an integer.

    Its recurrent blocks look for their state on themselves; it is put there when a block is called and taken away
    again after it, so that nothing stays on the modules between calls.
    """

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

    def read(self, x: Tensor, state: State | None, keep: bool) -> tuple[Tensor, State]:
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
        if not keep:
            return hidden, {}
        found = {"read": [before + length]}
        for names, own in ((("conv", "recurrent"), self.recurrent), (("key", "value"), self.attending)):
            found |= {name: [cache.layers[layer].after[i] for layer in own] for i, name in enumerate(names)}
        return hidden, self.gathered(found)

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
        names, own = (("conv", "recurrent"), self.recurrent) if recurrent else (("key", "value"), self.attending)
        before = None if state is None else tuple(state[name][own.index(layer)] for name in names)
        return SimpleNamespace(before=before) if recurrent else _Window(self.body[0].config.sliding_window, before)
