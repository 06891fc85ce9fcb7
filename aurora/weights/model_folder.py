"""A model on disk: a folder with `config.yaml`, `model.safetensors` and the tokenizer's files, read without pickle.

`aurora export` writes shards and their index in place of `model.safetensors`; both are read.

The folder holds all that the model needs, so that it can be moved. Training may add `metrics.json`.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from aurora.assemble import build_model
from aurora.config import CONFIG_FILE, ModelConfig, read_config
from aurora.errors import AuroraError
from aurora.files import replacing
from aurora.model import AuroraModel
from aurora.registry import WEIGHTED_SLOTS
from aurora.weights.io import SINGLE_FILE, Output, open_tensors, read_metadata, slices, weight_files, write_safetensors
from aurora.weights.loading import load_parts, mismatches, require_finite

SAMPLE = 512  # values at each end of a tensor
WEIGHTS_FILE = SINGLE_FILE
TOKENIZER_FOLDER = "tokenizer"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf", ".onnx", ".msgpack")


def save_model(model: AuroraModel, config: ModelConfig, folder: str | Path) -> None:
    """Writes the weights and the config of the model; readers see the old or the new one."""
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AuroraError(f"the model is not saved: {name} holds values that are not finite")
    with replacing(Path(folder), folder=True) as place:
        describe_model(replace(config, backbone=model.backbone.portable(config.backbone)), place)
        outputs = {name: Output.of(tensor) for name, tensor in tensors.items()}
        write_safetensors(place / WEIGHTS_FILE, outputs, part_metadata(config))


def describe_model(config: ModelConfig, folder: Path) -> None:
    """Writes the config of a model and the tokenizer's files into its folder."""
    tokenizer = copy_tokenizer(config.tokenizer, folder / TOKENIZER_FOLDER)
    text = yaml.safe_dump(replace(config, tokenizer=tokenizer).tree, sort_keys=False)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def load_model(folder: str | Path, *, device: str | torch.device = "cpu", overrides: Sequence[str] = ()
               ) -> tuple[AuroraModel, ModelConfig]:
    """A saved model in evaluation mode, and its config.

    `overrides` such as `merge=pool` or `quantize=int8` change parts that hold no weights (merge, sort, prompt), the
    dtype, or how it is used.
    """
    config = read_config(folder).override(overrides)
    with torch.device("meta"):
        model = build_model(config)
    model.backbone.quantize(config.quantize)
    load_weights(model, folder, config)
    fill_unsaved_buffers(model, config)
    return model.to(device).eval(), config


def load_weights(model: AuroraModel, folder: str | Path, config: ModelConfig) -> None:
    """Reads a saved model's weights into `model`. AuroraError when they are of another model or broken.

    A model without memory (on the meta device) takes the read tensors as its own.
    """
    _, tensors = fitting_tensors(model, folder, config)
    load_parts(model, tensors, mapped=True)


def fitting_tensors(model: AuroraModel, folder: str | Path, config: ModelConfig
                    ) -> tuple[Path, dict[str, Tensor]]:
    """A saved model's weights, mapped, and the file or folder that errors name; the model is given room for the tuned
    initial state that they hold. AuroraError when they are not those of `model`, or broken."""
    paths = weight_files(Path(folder))
    path = paths[0] if len(paths) == 1 else Path(folder)
    tensors = open_tensors(folder)
    try:
        parts = dict(json.loads(read_metadata(paths[0]).get("parts", "{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise AuroraError(f"{path} cannot be read: the parts in its header are not a JSON object ({error})") from error
    for slot, name in part_names(config).items():
        if parts.get(slot, name) != name:
            raise AuroraError(f"{path} holds a model with {slot} {parts[slot]!r}, the config asks for {name!r}")
    model.backbone.start_like({name: tensor.shape for name, tensor in tensors.items()})
    faults = mismatches(model.state_dict(), tensors, listed=3)
    if faults:
        raise AuroraError(f"{path} is a checkpoint of another model than its config describes; {faults}")
    for name, tensor in tensors.items():  # a sample: to read all of it would take as long as the first answer
        flat = tensor.flatten()
        require_finite(path, name, torch.cat([flat[:SAMPLE], flat[-SAMPLE:]]))
    return path, tensors


def model_hash(folder: str | Path) -> str:
    """SHA-256 over what makes the model what it is: config, weights and tokenizer files, not its metrics."""
    folder = Path(folder)
    return hash_files(folder, [folder / CONFIG_FILE, *weight_files(folder),
                               *sorted((folder / TOKENIZER_FOLDER).rglob("*"))])


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of a model's tensors, as they are computed with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        for block in slices(tensor.detach()):
            digest.update(block.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_files(folder: Path, paths: list[Path]) -> str:
    """SHA-256 over the names, sizes and bytes of files below a folder."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def copy_tokenizer(tokenizer: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tokenizer's config with the files that its `path` names copied to `folder`, next to the config."""
    source = Path(tokenizer["path"]) if isinstance(tokenizer.get("path"), str) else None
    if source is None or not source.exists():
        return dict(tokenizer)
    folder.mkdir()
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
        return {**tokenizer, "path": f"{TOKENIZER_FOLDER}/{source.name}"}
    for file in sorted(source.iterdir()):
        # A tokenizer often lies beside a model's weights, and code that came with it is never run.
        if file.is_file() and file.suffix not in (*_WEIGHT_SUFFIXES, ".py"):
            shutil.copyfile(file, folder / file.name)
    return {**tokenizer, "path": TOKENIZER_FOLDER}


def fill_unsaved_buffers(model: AuroraModel, config: ModelConfig) -> None:
    """Gives the buffers that no checkpoint holds the values that their constructors compute."""
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not empty:
        return
    fresh = dict(build_model(config).named_buffers())
    for name in empty:
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, fresh[name])


def part_names(config: ModelConfig) -> dict[str, str]:
    """The names of the parts that hold weights."""
    return {slot: config.part(slot)["name"] for slot in WEIGHTED_SLOTS}


def part_metadata(config: ModelConfig) -> dict[str, str]:
    """The names of the parts that hold weights, as the header of a weight file has them."""
    return {"parts": json.dumps(part_names(config))}
