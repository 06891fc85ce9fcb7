"""RWKV-6 weights: the authors' names, which are ours, those of flash-linear-attention's `RWKV6ForCausalLM`, and those
of the repositories RWKV/v6-Finch-*-HF (`Rwkv6ForCausalLM`).

Shape letters: C width, H heads, N head size, R rank of the mixing, V vocabulary.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from aurora.weights.layouts import Family, KeyMap, Layout, Shapes, count_layers, require_values

from ._layouts import TIME_STATE, deep, fla_layout, flat, pair, pairs, size, transposed, unpack_state

# the authors mix in the order w, k, v, r, g, flash-linear-attention in the order r, w, k, v, g
TO_FLA = [3, 0, 1, 2, 4]
TO_AUTHORS = [1, 2, 3, 0, 4]


def _mix_in_to_fla(w1: Tensor) -> Tensor:
    """[C, 5R] → [5R, C]."""
    return w1.view(len(w1), 5, -1)[:, TO_FLA].flatten(1).t()


def _mix_in_to_authors(weight: Tensor) -> Tensor:
    """[5R, C] → [C, 5R]."""
    return weight.view(5, -1, weight.shape[1])[TO_AUTHORS].flatten(0, 1).t()


def _mix_out_to_fla(w2: Tensor) -> Tensor:
    """[5, R, C] → [C, 5R]."""
    return w2[TO_FLA].permute(2, 0, 1).flatten(1)


def _mix_out_to_authors(weight: Tensor) -> Tensor:
    """[C, 5R] → [5, R, C]."""
    return weight.view(len(weight), 5, -1).permute(1, 2, 0)[TO_AUTHORS]


def _row(tensor: Tensor) -> Tensor:
    """[1, 1, C] → [1, C]."""
    return tensor.view(1, -1)


BLOCK = [
    *pairs({"ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}, ("weight", "bias")),
    *pairs({
        "att.receptance": "attn.r_proj.linear", "att.key": "attn.k_proj.linear", "att.value": "attn.v_proj.linear",
        "att.gate": "attn.g_proj.linear", "att.output": "attn.o_proj",
        "ffn.key": "ffn.key.linear", "ffn.receptance": "ffn.receptance.linear", "ffn.value": "ffn.value",
    }),
    pair("att.time_faaaa", "attn.bonus"),
    pair("att.time_decay", "attn.w_proj.linear.lora.2.bias", flat, deep),
    pair("att.time_decay_w1", "attn.w_proj.linear.lora.0.weight", transposed, transposed),
    pair("att.time_decay_w2", "attn.w_proj.linear.lora.2.weight", transposed, transposed),
    pair("att.time_maa_x", "attn.x_proj.0.mu", flat, deep),
    pair("att.time_maa_w1", "attn.x_proj.0.linear.weight", _mix_in_to_fla, _mix_in_to_authors),
    pair("att.time_maa_w2", "attn.x_proj.2.weight", _mix_out_to_fla, _mix_out_to_authors),
    KeyMap(tuple(f"att.time_maa_{letter}" for letter in "rwkvg"), ("attn.x_bias",), _row, deep),
    pair("ffn.time_maa_k", "ffn.key.mu", flat, deep),
    pair("ffn.time_maa_r", "ffn.receptance.mu", flat, deep),
]


def _options(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": size(shapes, "emb.weight", 0),
        "hidden_size": size(shapes, "emb.weight", 1),
        "layers": count_layers(shapes, "blocks."),
        "head_size": size(shapes, "blocks.0.att.time_faaaa", 1),
        "ffn_size": size(shapes, "blocks.0.ffn.key.weight", 0),
        "mix_rank": size(shapes, "blocks.0.att.time_maa_w1", 1) // 5,
        "decay_rank": size(shapes, "blocks.0.att.time_decay_w1", 1),
    }


def _own_config(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"expand_k": 1.0, "expand_v": 1.0, "hidden_ratio": 3.5, "proj_low_rank_dim": options["mix_rank"],
            "gate_low_rank_dim": options["decay_rank"]}


def _hf_config(options: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Rwkv6ForCausalLM"], **HF_NEEDED,
        "vocab_size": options["vocab_size"], "hidden_size": options["hidden_size"],
        "attention_hidden_size": options["hidden_size"], "num_hidden_layers": options["layers"],
        "head_size": options["head_size"], "intermediate_size": options["ffn_size"],
        "rescale_every": 6, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": dtype,
    }


HF_NEEDED = {"model_type": "rwkv6", "layer_norm_epsilon": 1e-5, "head_size_divisor": 8, "tie_word_embeddings": False}
HF = Layout(
    name="hf",
    title="Rwkv6ForCausalLM of the repositories RWKV/v6-Finch-*-HF",
    marks=(r"^rwkv\.blocks\.\d+\.attention\.time_maa_",),
    key_maps=[
        *pairs({"emb": "rwkv.embeddings", "head": "head"}),
        *pairs({"blocks.0.ln0": "rwkv.blocks.0.pre_ln", "ln_out": "rwkv.ln_out"}, ("weight", "bias")),
        *(pair(f"blocks.{{}}.{name}", "rwkv.blocks.{}." + name.replace("att.", "attention.").replace(
            "ffn.", "feed_forward.")) for each in BLOCK for name in each.ours),
    ],
    configure=_hf_config,
    check=partial(require_values, part="backbone 'rwkv6'", needed=HF_NEEDED),
    notes=("transformers opens it with the code of one of those repositories beside it (trust_remote_code)",),
)
AUTHORS = Layout(
    name="authors",
    title="the authors' names (x060)",
    marks=(r"^blocks\.\d+\.att\.time_maa_",),
    carried=(TIME_STATE,),
)
FLA = fla_layout(
    "rwkv6",
    marks=(r"^model\.layers\.\d+\.attn\.x_(proj\.|bias$)",),
    block=BLOCK,
    own_config=_own_config,
    needed={"expand_k": 1.0, "expand_v": 1.0},
    notes=("flash-linear-attention takes the eps of the group norm from norm_eps (1e-5); the authors' is 64e-5. After "
           "loading, set layer.attn.g_norm.eps = 64e-5 in every layer, or its logits are 1e-3 off",),
)
FAMILY = Family(slot="backbone", part="rwkv6", layouts=(AUTHORS, FLA, HF), options=_options, unpack=unpack_state)
