"""Reading and writing the vision tower in the layout of `transformers` SigLIP. Safetensors only: a pickle runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.weights.io import SAFETENSORS, SINGLE_FILE, open_tensors, read_json
from aurora.weights.loading import mismatches

from ._layouts_siglip import PREFIX


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


def copy_into(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str) -> None:
    """Copies tensors by name. AuroraError that names what is missing or of another shape, before anything changes."""
    faults = mismatches(wanted, {key: given[key] for key in wanted if key in given}, listed=4)
    if faults:
        raise AuroraError(f"{path} is not a SigLIP vision tower of this size; {faults}")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(given[key])
