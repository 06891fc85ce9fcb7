"""Adapters on disk: a small folder beside the base model that it belongs to.

    adapter.json                 the parts, and a hash of the base weights of every slot
    SLOT/adapter_config.json     a LoRA, in the format of `peft`
         adapter_model.safetensors
         state.safetensors       a tuned initial state, in the layout of the backbone's makers
         weights.safetensors     a slot that the stage trained whole
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.files import read_json, replacing, write_json
from aurora.interfaces import Backbone
from aurora.model import AuroraModel
from aurora.recipe import Adapters
from aurora.registry import WEIGHTED_SLOTS, WeightedSlot
from aurora.weights.adapters import is_lora, is_state, lora_module, merge_adapters
from aurora.weights.io import open_tensors
from aurora.weights.loading import load
from aurora.weights.model_folder import hash_files, part_names

ABOUT_FILE = "adapter.json"
PEFT_CONFIG_FILE = "adapter_config.json"
STATE_FILE = "state.safetensors"
WHOLE_FILE = "weights.safetensors"
SAMPLES = 1024


def save_adapter(model: AuroraModel, folder: Path, *, config: ModelConfig, adapters: Adapters,
                 trained: Sequence[WeightedSlot], start: str) -> None:
    """Writes what a stage has learned, before its LoRAs are merged; readers see the old or the new folder."""
    about = {
        "parts": part_names(config),
        "base": {slot: base_hash(getattr(model, slot)) for slot in WEIGHTED_SLOTS if slot not in trained},
        "start": start,
    }
    with replacing(folder, folder=True) as place:
        for slot in adapters.keys() | set(trained):
            part = getattr(model, slot)
            (place / slot).mkdir()
            if slot in trained:
                _save(_own_weights(part), place / slot / WHOLE_FILE)
            if slot in adapters and adapters[slot].lora is not None:
                lora_module().save_lora(part, place / slot)
            if isinstance(part, Backbone) and part.initial_state is not None:
                _save(part.export_state(dict(part.initial_state.values())), place / slot / STATE_FILE)
        write_json(place / ABOUT_FILE, about)


def apply_adapter(model: AuroraModel, path: str | Path, config: ModelConfig, *, any_base: bool = False) -> None:
    """Changes a base model by an adapter, merged: a folder that training wrote, a folder of `peft` for the backbone,
    or a file with a tuned initial state in the layout of the backbone's makers.

    AuroraError when it is broken, of other parts, or of another base model unless `any_base` says that this is
    wanted. Files that do not say what they belong to are only held to names and shapes.
    """
    path = Path(path)
    if path.is_file():
        model.backbone.start_from(model.backbone.import_state(open_tensors(path)))
    elif (path / ABOUT_FILE).is_file():
        _apply_folder(model, path, config, any_base=any_base)
    elif (path / PEFT_CONFIG_FILE).is_file():
        lora_module().load_lora(model.backbone, path)
    else:
        raise AuroraError(f"{path} is not an adapter: it is not a file, and has neither {ABOUT_FILE} nor "
                          f"{PEFT_CONFIG_FILE}. A stage with `adapters` writes one as RUN/STAGE/adapter")
    merge_adapters(model)


def adapter_hash(path: str | Path) -> str:
    """SHA-256 over an adapter's files."""
    path = Path(path)
    return hash_files(path, [path] if path.is_file() else sorted(path.rglob("*")))


def base_hash(part: nn.Module) -> str:
    """What identifies the weights that an adapter stands on: values spread evenly over every tensor, in bfloat16, so
    that it is the same whatever the dtype that they were loaded in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_weights(part).items()):
        flat = tensor.flatten()
        places = torch.linspace(0, max(0, len(flat) - 1), min(SAMPLES, len(flat)), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].cpu().to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _apply_folder(model: AuroraModel, folder: Path, config: ModelConfig, *, any_base: bool) -> None:
    parts, base = _about(folder)
    for slot, name in part_names(config).items():
        if parts.get(slot, name) != name:
            raise AuroraError(f"{folder} is an adapter for {slot} {parts[slot]!r}, and this model has {name!r}")
    other = [slot for slot, wanted in base.items() if base_hash(getattr(model, slot)) != wanted]
    if other and not any_base:
        raise AuroraError(f"{folder} belongs to another base model: the weights of {', '.join(other)} are not those "
                          "that it was trained on. Give the model that the stage started from, or --any-base to "
                          "apply it all the same")
    for slot in WEIGHTED_SLOTS:
        part = getattr(model, slot)
        if (folder / slot / WHOLE_FILE).is_file():
            load(part, str(folder / slot / WHOLE_FILE))
        if (folder / slot / PEFT_CONFIG_FILE).is_file():
            lora_module().load_lora(part, folder / slot)
        if (folder / slot / STATE_FILE).is_file():
            part.start_from(part.import_state(open_tensors(folder / slot / STATE_FILE)))


def _about(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    about = read_json(folder / ABOUT_FILE)
    try:
        return dict(about["parts"]), {slot: about["base"][slot] for slot in WEIGHTED_SLOTS if slot in about["base"]}
    except (ValueError, KeyError, TypeError) as error:
        raise AuroraError(f"{folder / ABOUT_FILE} cannot be read: {type(error).__name__} {error}") from error


def _own_weights(part: nn.Module) -> dict[str, Tensor]:
    """The weights without adapters, under the names that they have without them."""
    return {name.replace(".base_layer.", "."): tensor.detach()
            for name, tensor in part.state_dict().items() if not is_lora(name) and not is_state(name)}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
