"""From a config to an AuroraModel; the only place where widths meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aurora.errors import AuroraError, suggest
from aurora.interfaces import VideoReader
from aurora.model import AuroraModel
from aurora.registry import BACKBONE, CONNECTOR, MERGE, PROMPT, READER, SORT, TOKENIZER, VISION

MODEL_SLOTS = ("vision", "merge", "sort", "connector", "backbone", "tokenizer", "prompt")
WEIGHTED_SLOTS = ("vision", "connector", "backbone")
INJECTED = {
    "connector": ("in_width", "out_width"),
    "backbone": ("vocab_size",),
    "data": ("layout", "tokenizer", "prompt", "reader", "mixture", "epochs", "max_steps", "global_batch", "seed",
             "quarantine"),
    "source": ("folder",),
}
"""Constructor arguments that other parts know, so that no config says them."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_model(config: Mapping[str, Any], *, empty_backbone: bool = False) -> AuroraModel:
    """The model that a config describes, with the weights that its initialisation gives.

    `config` holds one `{name, **options}` per model slot, and `dtype`. Built under `torch.device("meta")` it takes no
    memory; so does an `empty_backbone`, whose weights are loaded next.
    """
    missing = [slot for slot in MODEL_SLOTS if slot not in config]
    if missing:
        raise AuroraError(f"the config has no {', '.join(missing)}; a model needs {', '.join(MODEL_SLOTS)}")
    with _default_dtype(config.get("dtype", "float32")):
        tokenizer = TOKENIZER.build(config["tokenizer"])
        vision = VISION.build(config["vision"])
        with torch.device("meta") if empty_backbone else nullcontext():
            backbone = BACKBONE.build(config["backbone"], vocab_size=tokenizer.vocab_size)
        connector = CONNECTOR.build(config["connector"], in_width=vision.width, out_width=backbone.hidden_size)
    return AuroraModel(
        vision=vision,
        merge=MERGE.build(config["merge"]),
        sort=SORT.build(config["sort"]),
        connector=connector,
        backbone=backbone,
        tokenizer=tokenizer,
        prompt=PROMPT.build(config["prompt"]),
    )


def build_reader(config: Mapping[str, Any]) -> VideoReader:
    """The video reader that a config names."""
    return READER.build(config["reader"])


def load_base_weights(model: AuroraModel, config: Mapping[str, Any]) -> dict[str, str]:
    """Loads `base_weights.<slot>.<part's name>` into the parts that have an entry.

    Gives for each weighted slot where its weights come from, to be shown: a part without an entry starts from random
    weights, which is right for a connector and worth knowing for the others.
    """
    sources = {}
    for slot in WEIGHTED_SLOTS:
        path = base_weights(config, slot)
        sources[slot] = path or "random"
        if path is None:
            continue
        if not Path(path).exists():
            raise AuroraError(f"base_weights.{slot}.{config[slot]['name']}: {path} does not exist")
        getattr(model, slot).load_base(path)
    return sources


def base_weights(config: Mapping[str, Any], slot: str) -> str | None:
    """What a config gives for a slot's part to start from, if anything."""
    path: str | None = ((config.get("base_weights") or {}).get(slot) or {}).get(config[slot]["name"])
    return path


def count_parameters(model: nn.Module, *, learned: bool = False) -> dict[str, int]:
    """Parameters per weighted slot; with `learned` only those that take a gradient."""
    return {slot: sum(p.numel() for p in getattr(model, slot).parameters() if p.requires_grad or not learned)
            for slot in WEIGHTED_SLOTS}


@contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    if name not in DTYPES:
        raise AuroraError(f"dtype {name!r} is unknown.{suggest(name, list(DTYPES))}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[name])
    try:
        yield
    finally:
        torch.set_default_dtype(before)
