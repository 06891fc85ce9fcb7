"""Mamba-2 weights: `Mamba2ForCausalLM` of transformers, the authors' names, and ours, which have no prefix."""

import math
from collections.abc import Mapping
from typing import Any

from aurora.errors import AuroraError
from aurora.weights.layouts import Family, KeyMap, Layout, Shapes, count_layers, require_values

from ._layouts import pair, size

BLOCK = ("norm.weight", "mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias", "mixer.dt_bias",
         "mixer.A_log", "mixer.D", "mixer.norm.weight", "mixer.out_proj.weight")


def _key_maps(embeddings: str) -> list[KeyMap]:
    names = {name: name for name in ("norm_f.weight", *(f"layers.{{}}.{name}" for name in BLOCK))}
    names["embeddings.weight"] = f"{embeddings}.weight"
    return [pair(ours, f"backbone.{theirs}") for ours, theirs in names.items()]


def _options(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = size(shapes, "embeddings.weight", 1), size(shapes, "layers.0.mixer.A_log", 0)
    inner = size(shapes, "layers.0.mixer.out_proj.weight", 1)
    groups = int(config.get("n_groups", config.get("ngroups", 1)))
    if groups != 1:
        raise AuroraError(f"config.json says n_groups {groups}; backbone 'mamba2' has one group of keys and queries")
    if inner % width or inner % heads:
        raise AuroraError(f"the inner width {inner} is not a multiple of the width {width} and the {heads} heads, as "
                          "that of backbone 'mamba2' is")
    return {
        "vocab_size": size(shapes, "embeddings.weight", 0),
        "hidden_size": width,
        "layers": count_layers(shapes, "layers."),
        "head_size": inner // heads,
        "state_size": (size(shapes, "layers.0.mixer.conv1d.weight", 0) - inner) // 2,
        "expand": inner // width,
        "conv_size": size(shapes, "layers.0.mixer.conv1d.weight", 2),
    }


NEEDED = {"model_type": "mamba2", "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "use_bias": False,
          "use_conv_bias": True, "rms_norm": True}


def _configure(options: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Mamba2ForCausalLM"], **NEEDED,
        "vocab_size": options["vocab_size"], "hidden_size": options["hidden_size"],
        "num_hidden_layers": options["layers"], "head_dim": options["head_size"],
        "num_heads": options["expand"] * options["hidden_size"] // options["head_size"],
        "state_size": options["state_size"], "n_groups": 1, "expand": options["expand"],
        "conv_kernel": options["conv_size"], "chunk_size": 256, "residual_in_fp32": True, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "dtype": dtype,
    }


def _check(config: Mapping[str, Any]) -> None:
    require_values(config, part="backbone 'mamba2'", needed=NEEDED)
    low, high = config.get("time_step_limit") or (0.0, math.inf)
    if _number(low) > 0 or _number(high) < math.inf:
        raise AuroraError(f"config.json says time_step_limit {[low, high]}; backbone 'mamba2' does not limit steps")


def _number(value: Any) -> float:
    """A number of a config.json, where transformers writes infinity as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)


def _configure_authors(options: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "d_model": options["hidden_size"],
        "n_layer": options["layers"],
        "vocab_size": options["vocab_size"],
        "d_intermediate": 0,
        "ssm_cfg": {"layer": "Mamba2", "d_state": options["state_size"], "d_conv": options["conv_size"],
                    "expand": options["expand"], "headdim": options["head_size"]},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": True,
    }


MAMBA2 = r"^backbone\.layers\.\d+\.mixer\.(dt_bias|norm\.weight)$"  # Mamba-1 has neither

TRANSFORMERS = Layout(
    name="transformers",
    title="Mamba2ForCausalLM of transformers",
    marks=(r"^backbone\.embeddings\.weight$", MAMBA2),
    key_maps=_key_maps("embeddings"),
    copies={"lm_head.weight": "backbone.embeddings.weight"},
    configure=_configure,
    check=_check,
)
AUTHORS = Layout(
    name="authors",
    title="the authors' names (mamba_ssm)",
    marks=(r"^backbone\.embedding\.weight$", MAMBA2),
    key_maps=_key_maps("embedding"),
    copies={"lm_head.weight": "backbone.embedding.weight"},
    writes_copies=True,
    configure=_configure_authors,
)
OURS = Layout(name="aurora", title="our own names", marks=(r"^layers\.\d+\.mixer\.dt_bias$",))
FAMILY = Family(slot="backbone", part="mamba2", layouts=(TRANSFORMERS, AUTHORS, OURS), options=_options)
