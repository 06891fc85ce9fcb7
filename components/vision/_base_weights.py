"""Reading and writing the vision tower in the layout of `transformers` SigLIP. Safetensors only: a pickle runs code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aurora.errors import AuroraError

PREFIX = "vision_model."
_OTHER_TOWERS = ("text_model.", "logit_scale", "logit_bias")


def read_tower(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The vision tower's tensors, without prefix, and its configuration (empty for a bare file)."""
    place = Path(path)
    tensors: dict[str, Tensor] = {}
    for file in _files(place):
        tensors |= _read(file)
    if any(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    return tensors, _config(place)


def write_tower(path: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """A .safetensors file, or a directory with `config.json` that `transformers` opens."""
    place = Path(path)
    if place.suffix == ".safetensors":
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), place, metadata={"format": "pt"})
        return
    place.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")


def copy_into(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str) -> None:
    """Copies tensors by name. AuroraError that names what is missing or of another shape, before anything changes."""
    missing = [key for key in wanted if key not in given]
    if missing:
        raise AuroraError(f"{path}: no SigLIP vision tower of this size; {len(missing)} tensor(s) are missing: "
                          f"{_some(missing)}")
    unlike = [
        f"{key} is {list(given[key].shape)} where {list(tensor.shape)} is needed"
        for key, tensor in wanted.items()
        if given[key].shape != tensor.shape
    ]
    if unlike:
        raise AuroraError(f"{path}: {len(unlike)} tensor(s) have another shape: {_some(unlike)}")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(given[key])


def count_blocks(keys: Iterable[str]) -> int:
    """How many blocks a tower's tensors describe."""
    return len({key.split(".")[2] for key in keys if key.startswith("encoder.layers.")})


def _files(place: Path) -> list[Path]:
    if place.is_file() and place.suffix == ".safetensors":
        return [place]
    if place.is_file():
        raise AuroraError(f"{place} is no .safetensors file; pickled weights are not read, because a pickle runs code")
    index, single = place / "model.safetensors.index.json", place / "model.safetensors"
    if index.is_file():
        shards = {place / name for name in _json(index).get("weight_map", {}).values()}
        absent = sorted(str(shard) for shard in shards if not shard.is_file())
        if absent or not shards:
            raise AuroraError(f"{index} names shards that are not there: {_some(absent) or 'none at all'}")
        return sorted(shards)
    if single.is_file():
        return [single]
    what = "holds no model.safetensors" if place.is_dir() else "does not exist"
    raise AuroraError(f"{place} {what}; a transformers SigLIP directory or a .safetensors file is right")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            keys: list[str] = list(opened.keys())
            return {key: opened.get_tensor(key) for key in keys if not key.startswith(_OTHER_TOWERS)}
    except (SafetensorError, OSError) as error:
        raise AuroraError(f"{file} is not readable as safetensors: {error}") from error


def _config(place: Path) -> dict[str, Any]:
    file = place / "config.json"
    config = _json(file) if file.is_file() else {}
    vision: dict[str, Any] = config.get("vision_config", config)
    return vision


def _json(file: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AuroraError(f"{file} is not readable as JSON: {error}") from error
    return read


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
