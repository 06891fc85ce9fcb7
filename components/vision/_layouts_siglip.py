"""SigLIP weights: the vision tower of transformers, and our names, where query, key and value are one projection.
`load_base` reads safetensors only: a pickle runs code.

Shape letters: W width, p patch side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.files import read_json
from aurora.weights.io import SAFETENSORS, SINGLE_FILE, open_tensors
from aurora.weights.layouts import Family, KeyMap, Layout, Shapes, require_values

PREFIX = "vision_model."
FIXED = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
# what SiglipVisionConfig means where a config.json leaves it out
DEFAULT_HEADS = 12


def _flat_patch(weight: Tensor) -> Tensor:
    """[W, 3, p, p] → [W, 3pp]."""
    return weight.flatten(1)


def _square_patch(weight: Tensor) -> Tensor:
    """[W, 3pp] → [W, 3, p, p]."""
    side = math.isqrt(weight.shape[1] // 3)
    return weight.view(len(weight), 3, side, side)


def key_maps(layers: int, prefix: str) -> list[KeyMap]:
    """The names of so many blocks, theirs behind a prefix."""
    embeddings = f"{prefix}embeddings."
    maps = [
        KeyMap(("patch.weight",), (f"{embeddings}patch_embedding.weight",), _square_patch, _flat_patch),
        KeyMap(("patch.bias",), (f"{embeddings}patch_embedding.bias",)),
        KeyMap(("position",), (f"{embeddings}position_embedding.weight",)),
    ]
    modules = {"norm": f"{prefix}post_layernorm"}
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}.", f"{prefix}encoder.layers.{layer}."
        modules |= {ours + "norm_attention": theirs + "layer_norm1", ours + "norm_mlp": theirs + "layer_norm2",
                    ours + "attention.out": theirs + "self_attn.out_proj", ours + "mlp.up": theirs + "mlp.fc1",
                    ours + "mlp.down": theirs + "mlp.fc2"}
        maps += [KeyMap((f"{ours}attention.qkv.{kind}",),
                       tuple(f"{theirs}self_attn.{letter}_proj.{kind}" for letter in "qkv"))
                  for kind in ("weight", "bias")]
    return maps + [KeyMap((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for ours, theirs in modules.items()
                    for kind in ("weight", "bias")]


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
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
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
        marks=(rf"^{escaped}embeddings\.patch_embedding\.weight$",),
        key_maps=partial(key_maps, prefix=prefix),
        layer=rf"{escaped}encoder\.layers\.(\d+)\.",
        ignored=(r"text_model\..*", r"logit_(scale|bias)", rf"{escaped}head\..*",
                  rf"{escaped}embeddings\.position_ids"),
        configure=lambda options, dtype: {**tower_config(options), "dtype": dtype},
        check=_check,
    )


OURS = Layout(name="aurora", title="our own names", marks=(r"^blocks\.\d+\.attention\.qkv\.",),
              layer=r"blocks\.(\d+)\.")
BARE = _transformers("transformers-bare", "the same without vision_model. in front of each name", "")
FAMILY = Family(
    slot="vision",
    part="siglip",
    layouts=(
        _transformers("transformers", "the vision tower of transformers' SigLIP", PREFIX),
        BARE,
        OURS,
    ),
    options=_options,
)


def read_tower(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The vision tower's tensors, without prefix, and its configuration (empty for a bare file)."""
    place = Path(path)
    if place.is_file() and place.suffix != SAFETENSORS:
        raise AuroraError(f"{place} is not a .safetensors file; pickled weights are not read, because a pickle runs "
                          "code; a transformers SigLIP directory or a .safetensors file is right")
    tensors = open_tensors(place)
    if any(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    file = place / "config.json"
    config = read_json(file) if file.is_file() else {}
    return tensors, config.get("vision_config", config)


def write_tower(path: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """A .safetensors file, or a directory with `config.json` that `transformers` opens."""
    place = Path(path)
    file = place if place.suffix == SAFETENSORS else place / SINGLE_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), file, metadata={"format": "pt"})
    if file != place:
        (place / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
