"""Puts the adapters of a stage onto a model, says which parameters are theirs, and merges them in."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from types import ModuleType

from torch import nn

from aurora.adapters.spec import Adapters
from aurora.adapters.targets import find_targets
from aurora.assemble import WEIGHTED_SLOTS
from aurora.errors import AuroraError
from aurora.interfaces import INITIAL_STATE
from aurora.model import AuroraModel


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
            lora_module().add_lora(part, wanted.lora, targets)


def let_adapters_learn(model: AuroraModel, adapters: Adapters) -> None:
    """Gradients for the adapters, and their dropout; what they stand on keeps the mode that it has."""
    for slot, wanted in adapters.items():
        part = getattr(model, slot)
        for name, parameter in part.named_parameters():
            if (wanted.lora is not None and is_lora(name)) or (wanted.state is not None and is_state(name)):
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


def lr_scale(adapters: Adapters, slot: str, name: str, otherwise: float) -> float:
    """What the rate of a parameter is multiplied with: its adapter's scale, or the slot's."""
    wanted = adapters.get(slot)
    if wanted is not None and wanted.lora is not None and is_lora(name):
        return wanted.lora.lr_scale
    if wanted is not None and wanted.state is not None and is_state(name):
        return wanted.state.lr_scale
    return otherwise


def sharded_alone(model: AuroraModel) -> Iterator[nn.Module]:
    """Modules whose parameters are float32 beside others that may not be: a sharded unit has one learned dtype."""
    if model.backbone.initial_state is not None:
        yield model.backbone.initial_state


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
        return importlib.import_module("aurora.adapters.lora")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise AuroraError("a LoRA needs the package 'peft', which is not installed; "
                          "try: pip install 'auroralong[lora]'") from error
    finally:
        logging.disable(before)
