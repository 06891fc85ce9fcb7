"""LoRA by `peft`: its layers, its file format. The one file that needs the package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.files import read_json, write_json
from aurora.weights.io import Output, open_tensors, write_safetensors
from aurora.weights.loading import mismatches

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_NAME = "default"
_PREFIX = "base_model.model."  # of every key in peft's files


class AdaptedLinear(Linear):  # type: ignore[misc]
    """peft's layer, whose `weight` is what it multiplies with: code that takes the weight itself is adapted too."""

    @property
    def weight(self) -> Tensor:
        """[out, in]; without dropout."""
        weight: Tensor = self.get_base_layer().weight
        if self.merged or self.disable_adapters:
            return weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = sum((self.get_delta_weight(name) for name in self.active_adapters if name in self.lora_A),
                     start=torch.zeros((), dtype=wide, device=weight.device))
        return (weight.to(wide) + change).to(weight.dtype)


def add_lora(part: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Wraps the named linear layers; B is zero, so that nothing changes until it learns. Adapters are float32."""
    _inject(part, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets)))


def lora_layers(part: nn.Module) -> dict[str, Any]:
    """The wrapped layers by name."""
    return {name: module for name, module in part.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merge_lora(part: nn.Module) -> None:
    """Adds every change to its weight, in float32, and takes the wrappers away."""
    for name, layer in lora_layers(part).items():
        base = layer.get_base_layer()
        dtype = base.weight.dtype
        base.to(torch.promote_types(dtype, torch.float32))
        layer.merge()
        part.set_submodule(name, base.to(dtype))
    if hasattr(part, "peft_config"):
        del part.peft_config


def save_lora(part: nn.Module, folder: Path) -> None:
    """Writes what `peft` reads back: `PeftModel.from_pretrained(part, folder)`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: sorted(value) if isinstance(value, set) else value
              for key, value in part.peft_config[_NAME].to_dict().items()}  # type: ignore[index, union-attr]
    write_json(folder / CONFIG_FILE, dict(sorted({**config, "inference_mode": True}.items())))
    write_safetensors(folder / WEIGHTS_FILE, {_PREFIX + key: Output.of(each) for key, each in _tensors(part).items()},
                      {"format": "pt"})


def load_lora(part: nn.Module, folder: Path) -> None:
    """Wraps layers as a folder in peft's format says and fills them. AuroraError when it does not fit the part."""
    config = _read_config(folder)
    tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in open_tensors(folder / WEIGHTS_FILE).items()}
    try:
        _inject(part, config)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise AuroraError(f"{folder} is not an adapter of {type(part).__name__}: {reason}") from error
    wanted = _tensors(part)
    faults = mismatches(wanted, tensors, listed=3)
    if faults:
        raise AuroraError(f"{folder} is not an adapter of this {type(part).__name__}: {faults}")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])


def _inject(part: nn.Module, config: LoraConfig) -> None:
    if lora_layers(part):
        raise AuroraError(f"{type(part).__name__} has a LoRA already; merge it before another one is added")
    config._register_custom_module({nn.Linear: AdaptedLinear})
    # given a model of transformers, peft refuses what that model's kernels would read past; ours do not
    plain = nn.Module()
    for name, child in part.named_children():
        plain.add_module(name, child)
    inject_adapter_in_model(config, plain, adapter_name=_NAME)
    for name, child in plain.named_children():
        setattr(part, name, child)
    part.peft_config = plain.peft_config
    for module in lora_layers(part).values():
        for name in module.adapter_layer_names:
            layers = getattr(module, name)
            layers.to(torch.promote_types(module.get_base_layer().weight.dtype, torch.float32))


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors under their names in peft's files, without the prefix."""
    tensors = {}
    for name, layer in lora_layers(part).items():
        for key, tensor in layer.state_dict(keep_vars=True).items():
            if not key.startswith("base_layer."):
                short = key.replace(f".{_NAME}", "", 1).replace("magnitude_vector.weight", "magnitude_vector")
                tensors[f"{name}.{short}"] = tensor
    return tensors


def _read_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG_FILE
    kind = read_json(path).get("peft_type")
    if kind != "LORA":
        raise AuroraError(f"{path} describes an adapter of the type {kind!r}; only LORA can be read")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise AuroraError(f"{path} cannot be read: {error}") from error
    if config.modules_to_save:
        raise AuroraError(f"{path} stores whole modules ({', '.join(config.modules_to_save)}) beside its LoRA, which "
                          "cannot be read")
    return config
