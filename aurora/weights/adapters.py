"""Adapters of a stage: adding them to a model, training them and merging them.

`adapter_folder` keeps them on disk; `lora` is the one file that needs `peft`.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterable, Sequence
from types import ModuleType

from torch import nn

from aurora.errors import AuroraError, suggest
from aurora.interfaces import INITIAL_STATE
from aurora.model import AuroraModel
from aurora.recipe import Adapters
from aurora.registry import WEIGHTED_SLOTS, WeightedSlot


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


def lr_scale(adapters: Adapters, slot: WeightedSlot, name: str, otherwise: float) -> float:
    """What the rate of a parameter is multiplied with: its adapter's scale, or the slot's."""
    wanted = adapters.get(slot)
    if wanted is not None and wanted.lora is not None and is_lora(name):
        return wanted.lora.lr_scale
    if wanted is not None and wanted.state is not None and is_state(name):
        return wanted.state.lr_scale
    return otherwise


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
        found = [name for name in linear
                 if (_matches(where, target, name) if regex else f".{name}".endswith(f".{target}"))]
        if not found:
            raise _nothing(where, part, target, linear)
        chosen.update(found)
    return [name for name in linear if name in chosen]


def _matches(where: str, pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise AuroraError(f"{where} {pattern!r} is not a regex: {error}; ends of names are given as a list") from error


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
