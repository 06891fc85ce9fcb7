"""Causal transformers of `transformers`: what a linear RNN is compared with.

Shape letters: T packed positions, S sequences, D width, L layers, C capacity of the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.types import State

from ._hf import Hosted, build
from ._hf_attention import NAME, Packed
from ._hf_config import Wanted, model_config
from ._packing import Row

DEFAULT = "llama"
LAYERS = {"full_attention", "sliding_attention"}


@BACKBONE.register
class Transformer(Hosted):
    """Any causal transformer of `transformers` (Llama, Qwen2, SmolLM …) with its keys and values as memory: a
    baseline.

    Its memory grows by every position read, and a step costs as much as what was read before it. Its architecture is
    that of the folder `path` (weights are read by `base_weights.backbone.transformer`, which is the same folder unless
    something else is said), or of `model_type` with our three sizes and any option of its own in `config`.

    Rows are packed exactly: positions restart with each sequence, and attention is computed sequence by sequence.
    """

    constant_state = False

    def __init__(
        self,
        *,
        vocab_size: int,
        path: str | None = None,
        model_type: str | None = None,
        hidden_size: int | None = None,
        layers: int | None = None,
        head_size: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        wanted = Wanted("transformer", path, model_type, hidden_size, layers, head_size, config, vocab_size)
        described = model_config(wanted, DEFAULT)
        _check_attention(described)
        shapes = _shapes(described)
        super().__init__(described, name="transformer", vocab_size=vocab_size, attention=NAME)
        self.state_shapes = shapes

    def blank_state(self, sequences: int) -> State:
        weight = self.body.get_input_embeddings().weight
        empty = {name: weight.new_zeros(layers, sequences, 0, *shape)
                 for name, (layers, shape) in self.state_shapes.items()}
        return {**empty, "length": weight.new_zeros(1, sequences, dtype=torch.int64)}

    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None, *, return_state: bool
    ) -> tuple[Tensor, State | None]:
        lengths = Row.of(cu_seqlens, x.device).cu_seqlens.diff().tolist()
        if min(lengths) < 1:
            raise ValueError(f"sequences of lengths {lengths}: empty sequences cannot be read")
        packed = Packed(lengths, state, return_state, x.device)
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


def _check_attention(config: Any) -> None:
    """AuroraError for a model whose memory is something else than keys and values."""
    other = set(getattr(config, "layer_types", None) or ["full_attention"]) - LAYERS
    if other:
        raise AuroraError(f"backbone 'transformer': {config.model_type} has layers of the kind(s) "
                          f"{', '.join(sorted(other))}; only attention is read here, and models that are recurrent in "
                          "every layer by backbone=hf")


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
