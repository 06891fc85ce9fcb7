"""A whole model as a folder that can be given away: weights in shards, config, tokenizer, prompt and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from aurora.assemble import build_model
from aurora.checkpoint import (
    CONFIG_FILE,
    DESCRIBED,
    TOKENIZER_FOLDER,
    check_same_model,
    copy_tokenizer,
    model_hash,
    part_names,
    read_config,
    weight_paths,
)
from aurora.conversion.card import describe_prompt, model_card, results_of, training_of
from aurora.conversion.plan import DTYPES
from aurora.conversion.reading import are_mapped, open_tensors, read_metadata
from aurora.conversion.replacing import replacing, require_free, require_room
from aurora.conversion.run import SHARD_BYTES, Told
from aurora.conversion.writing import Output, write_shards
from aurora.errors import AuroraError, suggest
from aurora.model import AuroraModel

CARD_FILE = "README.md"
PROMPT_FILE = "prompt.json"
_SPARE_BYTES = 2**26  # for what lies beside the weights


def export(
    folder: Path, target: Path, *, name: str | None = None, licence: str | None = None, dtype: str | None = None,
    results: Sequence[str] = (), sources: Mapping[str, str] | None = None, force: bool = False,
    shard_bytes: int = SHARD_BYTES, told: Told = lambda done, all: None,
) -> None:
    """Writes the model in `folder` to the folder `target`, which `load_model` reads as well. Streamed; whole or not at
    all. AuroraError for a model that is broken or not the one that its config describes.

    `sources` says of a model that was not trained yet where the weights of its slots come from.
    """
    require_free(target, folder=True, force=force)
    config = read_config(folder)
    config["dtype"] = _dtype(dtype or config.get("dtype", "float32"))
    tensors = open_tensors(folder) if weight_paths(folder) else {}
    model = _skeleton(folder, config, tensors)
    measured = results_of(folder, model_hash(folder), results)
    card = model_card(model, config, name=name or target.resolve().name, licence=licence,
                      training=training_of(folder), sources=sources, results=measured)
    wanted, mapped = DTYPES[config["dtype"]] if dtype else None, are_mapped(folder)
    outputs = {key: _output(tensor, wanted, mapped) for key, tensor in tensors.items()}
    all_bytes = sum(output.nbytes for output in outputs.values())
    require_room(target, all_bytes + _SPARE_BYTES)
    with replacing(target, folder=True) as place:
        described = {key: config[key] for key in DESCRIBED if key in config}
        described["tokenizer"] = copy_tokenizer(config["tokenizer"], place / TOKENIZER_FOLDER)
        (place / CONFIG_FILE).write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        (place / PROMPT_FILE).write_text(json.dumps(describe_prompt(model), indent=2, ensure_ascii=False) + "\n",
                                         encoding="utf-8")
        (place / CARD_FILE).write_text(card, encoding="utf-8")
        for file in model.tokenizer.files:
            shutil.copyfile(file, place / file.name)
        write_shards(place, outputs, {"parts": json.dumps(part_names(config))}, _summed(told, all_bytes), shard_bytes)


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise AuroraError(f"dtype {name!r} is unknown.{suggest(name, list(DTYPES))}")
    return name


def _skeleton(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AuroraModel:
    """The model without memory, once the weights were found to be its own."""
    with torch.device("meta"):
        model = build_model(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    model.backbone.start_like(shapes)
    parts = json.loads(read_metadata(weight_paths(folder)[0]).get("parts", "{}"))
    check_same_model(folder, parts, config, model.state_dict(), shapes)
    return model


def _output(tensor: Tensor, dtype: torch.dtype | None, mapped: bool) -> Output:
    kept = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype
    return Output.of(tensor, kept)._replace(mapped=mapped)


def _summed(told: Told, all_bytes: int) -> Callable[[int], None]:
    done = 0

    def step(written: int) -> None:
        nonlocal done
        done += written
        told(done, all_bytes)

    return step
