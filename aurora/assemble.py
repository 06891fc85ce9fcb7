"""From a config to an AuroraModel; the only place where widths meet."""

from contextlib import ExitStack, nullcontext

import torch
from torch import nn

from aurora.config import Config, ModelConfig
from aurora.interfaces import Timestamps
from aurora.model import AuroraModel
from aurora.registry import BACKBONE, CONNECTOR, MERGE, PROMPT, SORT, TOKENIZER, VISION, WEIGHTED_SLOTS


def build_model(config: ModelConfig, *, empty_backbone: bool = False) -> AuroraModel:
    """The model that a config describes, with the weights that its initialisation gives. AuroraError for what cannot be
    built, and for a prompt with timestamps that the tokenizer cannot give.

    Built under `torch.device("meta")` it takes no memory; so does an `empty_backbone`, whose weights are loaded next.
    """
    with ExitStack() as defaults:
        defaults.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(getattr(torch, config.dtype))
        tokenizer, prompt = TOKENIZER.build(config.tokenizer), PROMPT.build(config.prompt)
        if prompt.timestamps:
            Timestamps.of(tokenizer)
        vision = VISION.build(config.vision)
        with torch.device("meta") if empty_backbone else nullcontext():
            backbone = BACKBONE.build(config.backbone, vocab_size=tokenizer.vocab_size)
        connector = CONNECTOR.build(config.connector, in_width=vision.width, out_width=backbone.hidden_size)
    return AuroraModel(
        vision=vision,
        merge=MERGE.build(config.merge),
        sort=SORT.build(config.sort),
        connector=connector,
        backbone=backbone,
        tokenizer=tokenizer,
        prompt=prompt,
    )


def load_base_weights(model: AuroraModel, config: Config) -> dict[str, str]:
    """Loads `base_weights.<slot>.<part's name>` into the parts that have an entry.

    Gives for each weighted slot where its weights come from: "random" for a part without an entry.
    """
    for slot, path in config.require_base_weights().items():
        getattr(model, slot).load_base(path)
    return {slot: path or "random" for slot, path in config.base_paths().items()}


def count_parameters(model: nn.Module, *, learned: bool = False) -> dict[str, int]:
    """Parameters per weighted slot; with `learned` only those that take a gradient."""
    return {slot: sum(p.numel() for p in getattr(model, slot).parameters() if p.requires_grad or not learned)
            for slot in WEIGHTED_SLOTS}
