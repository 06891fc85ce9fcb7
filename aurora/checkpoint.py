"""A model on disk: a folder with `config.yaml`, `model.safetensors` and `metrics.json`, read without pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aurora.assemble import MODEL_SLOTS, build_model
from aurora.errors import AuroraError
from aurora.model import AuroraModel

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


def save_model(model: AuroraModel, config: Mapping[str, Any], folder: str | Path) -> None:
    """Writes the weights and the part of the config that describes the model; readers see the old or the new one."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    described = {key: config[key] for key in (*MODEL_SLOTS, "dtype", "keep_ratio", "sampling") if key in config}
    (partial / CONFIG_FILE).write_text(yaml.safe_dump(described, sort_keys=False))
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt", "parts": json.dumps(_part_names(config))})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a saved model. AuroraError when the folder holds none."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise AuroraError(f"{folder} is no model folder: it has no {CONFIG_FILE}. "
                          "`aurora train` writes one per stage, as RUN/STAGE/model")
    config = yaml.safe_load(path.read_text())
    if not isinstance(config, dict) or any(slot not in config for slot in MODEL_SLOTS):
        raise AuroraError(f"{path} describes no model: it must name {', '.join(MODEL_SLOTS)}")
    return config


def load_model(folder: str | Path, *, device: str | torch.device = "cpu", overrides: Mapping[str, Any] | None = None
               ) -> tuple[AuroraModel, dict[str, Any]]:
    """A saved model in evaluation mode, and its config.

    `overrides` replace parts that hold no weights (merge, sort, prompt) or the dtype.
    """
    config = {**read_config(folder), **(overrides or {})}
    with torch.device("meta"):
        model = build_model(config)
    model.to_empty(device=device)
    load_weights(model, folder, config)
    return model.eval(), config


def load_weights(model: AuroraModel, folder: str | Path, config: Mapping[str, Any]) -> None:
    """Reads a saved model's weights into `model`. AuroraError when they are of another model or broken."""
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise AuroraError(f"{folder} has no {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            parts = json.loads((file.metadata() or {}).get("parts", "{}"))
    except (SafetensorError, OSError) as error:
        raise AuroraError(f"{path} cannot be read ({error}); it may be truncated") from error
    _check_same_model(path, parts, config, model.state_dict(), tensors)
    model.load_state_dict(tensors)


def _part_names(config: Mapping[str, Any]) -> dict[str, str]:
    return {slot: config[slot]["name"] for slot in ("vision", "connector", "backbone")}


def _check_same_model(path: Path, parts: Mapping[str, str], config: Mapping[str, Any],
                      wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for slot, name in _part_names(config).items():
        if parts.get(slot, name) != name:
            raise AuroraError(f"{path} holds a model with {slot} {parts[slot]!r}, the config asks for {name!r}")
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    reshaped = [f"{name}: {tuple(found[name].shape)} in the file, {tuple(wanted[name].shape)} in the config"
                for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape]
    for problem, names in (("lacks", missing), ("has unexpected", unexpected), ("has other shapes for", reshaped)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise AuroraError(f"{path} is a checkpoint of another model: it {problem} {'; '.join(names[:3])}{more}")
