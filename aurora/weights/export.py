"""`aurora export`: a whole model as a folder to give away, with shards, config, tokenizer, prompt and model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from aurora.assemble import build_model
from aurora.files import replacing, require_free, require_room, write_json
from aurora.weights.card import describe_prompt, model_card, results_of, training_of
from aurora.weights.convert import DTYPES, SHARD_BYTES, Progress, summed
from aurora.weights.io import Output, are_mapped, write_shards
from aurora.weights.model_folder import describe_model, fitting_tensors, model_hash, part_metadata, read_config

CARD_FILE = "README.md"
PROMPT_FILE = "prompt.json"
_SPARE_BYTES = 2**26  # for what lies beside the weights


def export(
    folder: Path, target: Path, *, name: str | None = None, licence: str | None = None, dtype: str | None = None,
    results: Sequence[str] = (), sources: Mapping[str, str] | None = None, force: bool = False,
    shard_bytes: int = SHARD_BYTES, progress: Progress = lambda done, all: None,
) -> None:
    """Writes the model in `folder` to the folder `target`, which `load_model` reads as well. Streamed; whole or not at
    all. AuroraError for a model that is broken or not the one that its config describes.

    `sources` says of a model that was not trained yet where the weights of its slots come from.
    """
    require_free(target, folder=True, force=force)
    config = read_config(folder).override([] if dtype is None else [f"dtype={dtype}"])
    with torch.device("meta"):
        model = build_model(config)
    _, tensors = fitting_tensors(model, folder, config)
    card = model_card(model, config, name=name or target.resolve().name, licence=licence,
                      training=training_of(folder), sources=sources,
                      results=results_of(folder, model_hash(folder), results))
    wanted, mapped = DTYPES[config.dtype] if dtype else None, are_mapped(folder)
    outputs = {key: Output.of(tensor, wanted if tensor.is_floating_point() else None, mapped=mapped)
               for key, tensor in tensors.items()}
    all_bytes = sum(output.nbytes for output in outputs.values())
    require_room(target, all_bytes + _SPARE_BYTES)
    with replacing(target, folder=True) as place:
        describe_model(config, place)
        write_json(place / PROMPT_FILE, describe_prompt(model))
        (place / CARD_FILE).write_text(card, encoding="utf-8")
        for file in model.tokenizer.files:
            shutil.copyfile(file, place / file.name)
        write_shards(place, outputs, part_metadata(config), shard_bytes, summed(progress, all_bytes))
