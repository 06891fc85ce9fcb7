"""RWKV-7 weights: the authors' names, which are ours, and those of flash-linear-attention's `RWKV7ForCausalLM`."""

from collections.abc import Mapping
from typing import Any

from aurora.weights.layouts import Family, KeyMap, Layout, Shapes, count_layers

from ._layouts import TIME_STATE, deep, fla_layout, flat, pair, pairs, size, transposed, unpack_state


def _low_rank(letter: str, *, bias: bool = True) -> list[KeyMap]:
    """x → (x @ w1) @ w2 + w0, as two projections."""
    lora = f"attn.{letter}_lora.lora"
    maps = [pair(f"att.{letter}1", f"{lora}.0.weight", transposed, transposed),
             pair(f"att.{letter}2", f"{lora}.2.weight", transposed, transposed)]
    return [*maps, pair(f"att.{letter}0", f"{lora}.2.bias", flat, deep)] if bias else maps


BLOCK = [
    *pairs({"ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}, ("weight", "bias")),
    *pairs({"att.receptance": "attn.r_proj", "att.key": "attn.k_proj", "att.value": "attn.v_proj",
            "att.output": "attn.o_proj", "ffn.key": "ffn.key", "ffn.value": "ffn.value"}),
    *(pair(f"att.x_{letter}", f"attn.x_{letter}") for letter in "rwkvag"),
    pair("att.r_k", "attn.r_k"),
    pair("att.k_k", "attn.k_k", flat, deep),
    pair("att.k_a", "attn.k_a", flat, deep),
    *_low_rank("w"), *_low_rank("a"), *_low_rank("g", bias=False),
    *_low_rank("v"),  # the first layer has none
    pair("ffn.x_k", "ffn.x_k", flat, deep),
]


def _options(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    options = {
        "vocab_size": size(shapes, "emb.weight", 0),
        "hidden_size": size(shapes, "emb.weight", 1),
        "layers": count_layers(shapes, "blocks."),
        "head_size": size(shapes, "blocks.0.att.r_k", 1),
        "ffn_size": size(shapes, "blocks.0.ffn.key.weight", 0),
        "decay_rank": size(shapes, "blocks.0.att.w1", 1),
        "rate_rank": size(shapes, "blocks.0.att.a1", 1),
        "gate_rank": size(shapes, "blocks.0.att.g1", 1),
    }
    # a model of one layer has no rank of values
    return options | ({"value_rank": size(shapes, "blocks.1.att.v1", 1)} if options["layers"] > 1 else {})


def _own_config(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "head_dim": options["head_size"],
        "value_dim": [options["hidden_size"]] * options["layers"],
        "hidden_ratio": options["ffn_size"] / options["hidden_size"],
        "decay_low_rank_dim": options["decay_rank"],
        "a_low_rank_dim": options["rate_rank"],
        "v_low_rank_dim": options.get("value_rank", 32),
        "gate_low_rank_dim": options["gate_rank"],
    }


AUTHORS = Layout(
    name="authors",
    title="the authors' names (x070)",
    marks=(r"^blocks\.\d+\.att\.(r_k|k_k|k_a|w0)$",),
    carried=(TIME_STATE,),
    # some published files hold the first layer's value residual, which no layer reads
    ignored=(r"blocks\.0\.att\.v[012]",),
)
FLA = fla_layout(
    "rwkv7",
    marks=(r"^model\.layers\.\d+\.attn\.(r_k|k_k|k_a|w_lora\..*)$",),
    block=BLOCK,
    own_config=_own_config,
    needed={"norm_eps": 1e-5},
)
FAMILY = Family(slot="backbone", part="rwkv7", layouts=(AUTHORS, FLA), options=_options, unpack=unpack_state)
