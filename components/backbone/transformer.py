"""Causal transformers of `transformers`: what a linear RNN is compared with.

Shape letters: T packed positions, S sequences, D width, L layers, C capacity of the cache.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.types import State

from ..kernels._grid import sequence_lengths
from ._hf import Hosted, build

NAME = "aurora_packed"  # of our attention, among those of `transformers`
LAYERS = {"full_attention", "sliding_attention"}


class Packed(Cache):  # type: ignore[misc]
    """Where the sequences of a row lie, what they have read before, and the keys and values that they come to.

    Takes the place of a cache, to which every layer passes its new keys and values.
    """

    def __init__(self, lengths: Sequence[int], state: State | None, keep: bool, device: torch.device) -> None:
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


@BACKBONE.register
class Transformer(Hosted):
    """Any causal transformer of `transformers` (Llama, Qwen2, SmolLM …) with its keys and values as memory: a
    baseline.

    Its memory grows by every position read, and a step costs as much as what was read before it. Its architecture is
    that of the folder `path` (weights are read by `base_weights.backbone.transformer`, which is the same folder unless
    something else is said), or of `model_type` with our three sizes and any option of its own in `config`.

    Rows are packed exactly: positions restart with each sequence, and attention is computed sequence by sequence.
    """

    name = "transformer"
    default_type = "llama"
    attention = NAME
    constant_state = False

    def _check(self, config: Any) -> None:
        """AuroraError for a model whose memory is something else than keys and values."""
        other = set(getattr(config, "layer_types", None) or ["full_attention"]) - LAYERS
        if other:
            raise AuroraError(f"backbone 'transformer': {config.model_type} has layers of the kind(s) "
                              f"{', '.join(sorted(other))}; only attention is read here, and models that are recurrent "
                              "in every layer by backbone=hf")
        self.state_shapes = _shapes(config)

    def blank_state(self, sequences: int) -> State:
        weight = self.body.get_input_embeddings().weight
        empty = {name: weight.new_zeros(layers, sequences, 0, *shape)
                 for name, (layers, shape) in self.state_shapes.items()}
        return {**empty, "length": weight.new_zeros(1, sequences, dtype=torch.int64)}

    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None, *, return_state: bool
    ) -> tuple[Tensor, State | None]:
        packed = Packed(sequence_lengths(cu_seqlens, len(x)), state, return_state, x.device)
        hidden = _read(self.body, x, packed)
        return hidden, packed.after() if return_state else None

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        packed = Packed([1] * len(x), state, True, x.device)
        return _read(self.body, x, packed), packed.after()


def _read(body: Any, x: Tensor, packed: Packed) -> Tensor:
    hidden: Tensor = body(inputs_embeds=x[None], position_ids=packed.positions[None], past_key_values=packed,
                          use_cache=True, packed=packed).last_hidden_state
    # sharding hangs its hooks on what is returned, which a view would lose
    return hidden[0].to(x.dtype, copy=True)


def _shapes(config: Any) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Layers and shape [Hk, K] of keys and of values, found by letting the model read two sequences without memory.

    AuroraError when its attention cannot be shown where a sequence ends.
    """
    with torch.device("meta"):
        # experts are multiplied in bfloat16 on every device
        body = build(config, "transformer", NAME, torch.bfloat16).base_model
        packed = Packed([1, 1], None, True, torch.device("meta"))
        try:
            _read(body, torch.zeros(2, config.hidden_size, dtype=torch.bfloat16), packed)
            if "position_ids" not in inspect.signature(body.forward).parameters:
                raise ValueError("it takes no position_ids")
            if packed.attended != set(packed.found["key"]) or len(packed.attended) != config.num_hidden_layers:
                raise ValueError("its layers compute attention in a way of their own")
            found = {name: torch.stack(list(layers.values())) for name, layers in packed.found.items()}
        except Exception as error:
            raise AuroraError(f"backbone 'transformer': {config.model_type} cannot read packed rows: "
                              f"{' '.join(str(error).split())}") from error
    return {name: (len(layers), tuple(layers.shape[3:])) for name, layers in found.items()}


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
