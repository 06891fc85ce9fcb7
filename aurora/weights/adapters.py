"""Adapters of a stage: adding them to a model, training, merging, saving and applying them.

On disk they are a small folder beside the base model that they belong to; `lora` is the one file that needs `peft`.

    adapter.json                 the parts, and a hash of the base weights of every slot
    SLOT/adapter_config.json     a LoRA, in the format of `peft`
         adapter_model.safetensors
         state.safetensors       a tuned initial state, in the layout of the backbone's makers
         weights.safetensors     a slot that the stage trained whole
"""

import hashlib
import importlib
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from aurora.config import ModelConfig
from aurora.errors import AuroraError, suggest
from aurora.files import read_json, replacing, write_json
from aurora.interfaces import INITIAL_STATE, Backbone
from aurora.model import AuroraModel
from aurora.recipe import Adapters, Lora, SlotAdapters, TunedState
from aurora.registry import WEIGHTED_SLOTS, WeightedSlot
from aurora.weights.io import open_tensors
from aurora.weights.loading import load, write_tensors
from aurora.weights.model_folder import hash_files, part_names

ABOUT_FILE = "adapter.json"
PEFT_CONFIG_FILE = "adapter_config.json"
STATE_FILE = "state.safetensors"
WHOLE_FILE = "weights.safetensors"
SAMPLES = 1024


def attach_adapters(where: str, model: AuroraModel, adapters: Adapters) -> None:
    """Adds what `adapters` names; the model computes what it did before. AuroraError for a target that is not there.

    A tuned initial state that the model has already is learned on from where it is.
    """
    for slot, wanted in adapters.items():
        part = getattr(model, slot)
        if wanted.state is not None:
            part.tune_state(f"{where}.{slot}.state.states", wanted.state.states)
        if wanted.lora is not None:
            targets = find_targets(f"{where}.{slot}.lora.targets", part, wanted.lora.targets)
            lora_module().add_lora(part, targets, rank=wanted.lora.rank, alpha=wanted.lora.alpha,
                                   dropout=wanted.lora.dropout)


def let_adapters_learn(model: AuroraModel, adapters: Adapters) -> None:
    """Gradients for the adapters, and their dropout; what they stand on keeps the mode that it has."""
    for slot, wanted in adapters.items():
        part = getattr(model, slot)
        for name, parameter in part.named_parameters():
            if _adapter_of(wanted, name) is not None:
                parameter.requires_grad_(True)
        for name, module in part.named_modules():
            if ".lora_dropout" in name:
                module.train()


def merge_adapters(model: AuroraModel) -> None:
    """Makes every LoRA part of the weights that it changes, to rounding; a tuned initial state stays the backbone's."""
    for slot in WEIGHTED_SLOTS:
        part = getattr(model, slot)
        if any(is_lora(name) for name, _ in part.named_parameters()):
            lora_module().merge_lora(part)


def is_lora(name: str) -> bool:
    """Whether a parameter of this name, inside its slot, is a LoRA's."""
    return ".lora_" in name


def is_state(name: str) -> bool:
    """Whether a parameter of this name, inside its slot, is a tuned initial state."""
    return name.startswith(INITIAL_STATE)


def lr_scale(adapters: Adapters, slot: WeightedSlot, name: str, otherwise: float) -> float:
    """What the rate of a parameter is multiplied with: its adapter's scale, or the slot's."""
    adapter = _adapter_of(adapters[slot], name) if slot in adapters else None
    return otherwise if adapter is None else adapter.lr_scale


def _adapter_of(wanted: SlotAdapters, name: str) -> Lora | TunedState | None:
    """The adapter that a parameter of a slot belongs to."""
    if is_lora(name):
        return wanted.lora
    return wanted.state if is_state(name) else None


def describe_adapters(model: AuroraModel, adapters: Adapters) -> list[str]:
    """Such as 'LoRA of rank 16 on 16 layers of backbone'."""
    lines = []
    for slot, wanted in adapters.items():
        part = getattr(model, slot)
        if wanted.lora is not None:
            layers = sum(name.endswith(".base_layer") for name, _ in part.named_modules())
            lines.append(f"LoRA of rank {wanted.lora.rank} on {layers} layers of {slot}")
        if wanted.state is not None and part.initial_state is not None:
            lines.append(f"initial state ({', '.join(part.initial_state.values())}) of {slot}")
    return lines


def lora_module() -> ModuleType:
    """What needs `peft`. AuroraError when that is not installed."""
    before = logging.root.manager.disable
    # peft imports what else is installed, and that may log what it does not find
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("aurora.weights.lora")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise AuroraError("a LoRA needs the package 'peft', which is not installed; "
                          "try: pip install 'auroralong[lora]'") from error
    finally:
        logging.disable(before)


# ---- on disk ---------------------------------------------------------------------------------------------------


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
                write_tensors(_own_weights(part), str(place / slot / WHOLE_FILE))
            if slot in adapters and adapters[slot].lora is not None:
                lora_module().save_lora(part, place / slot)
            if isinstance(part, Backbone) and part.initial_state is not None:
                write_tensors(part.export_state(dict(part.initial_state.values())), str(place / slot / STATE_FILE))
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
    about = read_json(folder / ABOUT_FILE)
    try:
        parts = dict(about["parts"])
        base = {slot: about["base"][slot] for slot in WEIGHTED_SLOTS if slot in about["base"]}
    except (ValueError, KeyError, TypeError) as error:
        raise AuroraError(f"{folder / ABOUT_FILE} cannot be read: {type(error).__name__} {error}") from error
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


def _own_weights(part: nn.Module) -> dict[str, Tensor]:
    """The weights without adapters, under the names that they have without them."""
    return {name.replace(".base_layer.", "."): tensor.detach()
            for name, tensor in part.state_dict().items() if not is_lora(name) and not is_state(name)}


# ---- which layers a LoRA changes --------------------------------------------------------------------------------


def find_targets(where: str, part: nn.Module, targets: Sequence[str] | str | None) -> list[str]:
    """Full names of the linear layers that `targets` matches, as `peft` reads it: a list holds ends of names, one text
    is a regex of whole names. None means every linear layer of the part's blocks, or of a part without blocks.

    AuroraError, with the names that there are, for a target that matches none.
    """
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    if targets is None:
        kind = getattr(part, "block_class", None)
        blocks = tuple(f"{name}." for name, module in part.named_modules() if kind and isinstance(module, kind))
        found = [name for name in linear if kind is None or name.startswith(blocks)]
        if not found:
            raise AuroraError(f"{where}: {type(part).__name__} has no linear layer that a LoRA could change by itself; "
                              f"name some. Known: {', '.join(linear) or 'none'}")
        return found
    regex, chosen = isinstance(targets, str), set[str]()
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            pattern = re.compile(target if regex else rf"(.*\.)?{re.escape(target)}")
        except re.error as error:
            raise AuroraError(f"{where} {target!r} is not a regex: {error}; ends of names are given as a list"
                              ) from error
        found = list(filter(pattern.fullmatch, linear))
        if not found:
            raise _nothing(where, part, target, linear)
        chosen.update(found)
    return [name for name in linear if name in chosen]


def _nothing(where: str, part: nn.Module, target: str, linear: Iterable[str]) -> AuroraError:
    kinds = {type(module).__name__ for name, module in part.named_modules() if f".{name}".endswith(f".{target}")}
    if kinds:
        reason = f"{target!r} is of the kind {', '.join(sorted(kinds))}, and LoRA changes linear layers"
    elif any(f".{name}".endswith(f".{target}") for name, _ in part.named_parameters()):
        reason = f"{target!r} is a parameter of its own, and LoRA changes linear layers"
    else:
        reason = f"{target!r} is not the name of a linear layer"
    # without the number of the block, what is meant appears once
    short = dict.fromkeys(re.sub(r"^.*\.\d+\.(?=\D)", "", name) for name in linear)
    return AuroraError(f"{where}: {reason} of {type(part).__name__}.{suggest(target, short)}")
