"""SigLIP weights: the vision tower of transformers, and our names, where query, key and value are one projection.

Shape letters: W width, p patch side.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from aurora.errors import AuroraError
from aurora.weights.layouts import Family, KeyMap, Layout, Shapes, count_layers, require_values

FIXED = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
# what SiglipVisionConfig means where a config.json leaves it out
DEFAULT_HEADS = 12
_flat_patch = partial(Tensor.flatten, start_dim=1)  # [W, 3, p, p] → [W, 3pp]


def _square_patch(weight: Tensor) -> Tensor:
    """[W, 3pp] → [W, 3, p, p]."""
    side = math.isqrt(weight.shape[1] // 3)
    return weight.view(len(weight), 3, side, side)


def _key_maps(prefix: str) -> list[KeyMap]:
    modules = {"norm": "post_layernorm"} | {f"blocks.{{}}.{ours}": f"encoder.layers.{{}}.{theirs}" for ours, theirs in {
        "norm_attention": "layer_norm1", "norm_mlp": "layer_norm2", "attention.out": "self_attn.out_proj",
        "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}.items()}
    return [
        KeyMap(("patch.weight",), (f"{prefix}embeddings.patch_embedding.weight",), _square_patch, _flat_patch),
        KeyMap(("patch.bias",), (f"{prefix}embeddings.patch_embedding.bias",)),
        KeyMap(("position",), (f"{prefix}embeddings.position_embedding.weight",)),
        *(KeyMap((f"blocks.{{}}.attention.qkv.{kind}",),
                 tuple(f"{prefix}encoder.layers.{{}}.self_attn.{letter}_proj.{kind}" for letter in "qkv"))
          for kind in ("weight", "bias")),
        *(KeyMap((f"{ours}.{kind}",), (f"{prefix}{theirs}.{kind}",)) for ours, theirs in modules.items()
          for kind in ("weight", "bias")),
    ]


def _options(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    for name, dimensions in (("patch.weight", 2), ("position", 2), ("blocks.0.mlp.up.weight", 2)):
        if len(shapes.get(name, ())) != dimensions:
            raise AuroraError(f"the weights lack {name} (in our names), from which the tower's sizes are read")
    if not config:
        raise AuroraError("no config.json lies next to the weights, and the number of attention heads is not in their "
                          "shapes; give the whole directory")
    if "heads" in config:  # of a model folder: the options themselves
        return dict(config)
    width, inputs = shapes["patch.weight"]
    patch = math.isqrt(inputs // 3)
    depth = count_layers(shapes, "blocks.")
    whole = "norm.weight" in shapes  # else a tower that was cut below its last block
    return {
        "image_size": math.isqrt(shapes["position"][0]) * patch,
        "patch_size": patch,
        "width": width,
        "layers": depth if whole else depth + 1,
        "heads": int(config.get("vision_config", config).get("num_attention_heads", DEFAULT_HEADS)),
        "mlp_width": shapes["blocks.0.mlp.up.weight"][0],
        "feature_layer": -1 if whole else -2,
    }


def tower_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as config.json of `transformers`, for the blocks that are computed."""
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "hidden_size": options["width"],
        "num_hidden_layers": options["layers"] + 1 + options["feature_layer"],
        "num_attention_heads": options["heads"],
        "intermediate_size": options["mlp_width"],
        **FIXED,
    }


def _check(config: Mapping[str, Any]) -> None:
    require_values(config.get("vision_config", config), part="vision 'siglip'", needed=FIXED)


def _transformers(name: str, title: str, prefix: str) -> Layout:
    escaped = prefix.replace(".", r"\.")
    return Layout(
        name=name,
        title=title,
        # CLIP has no bias there
        marks=(rf"^{escaped}embeddings\.patch_embedding\.bias$",),
        key_maps=_key_maps(prefix),
        ignored=(r"text_model\..*", r"logit_(scale|bias)", rf"{escaped}head\..*",
                  rf"{escaped}embeddings\.position_ids"),
        configure=lambda options, dtype: {**tower_config(options), "dtype": dtype},
        check=_check,
    )


TRANSFORMERS = _transformers("transformers", "the vision tower of transformers' SigLIP", "vision_model.")
BARE = _transformers("transformers-bare", "the same without vision_model. in front of each name", "")
OURS = Layout(name="aurora", title="our own names", marks=(r"^blocks\.\d+\.attention\.qkv\.",))
FAMILY = Family(slot="vision", part="siglip", layouts=(TRANSFORMERS, BARE, OURS), options=_options)
