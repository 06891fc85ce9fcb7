"""What a checkpoint holds of the learned weights and the optimizer, by parameter name and whole.

Sharded tensors are gathered and cut again, so that a checkpoint fits any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from aurora.errors import AuroraError

Named = dict[str, Tensor]


def learned_weights(model: nn.Module, *, keep: bool = True) -> Named:
    """The parameters that learn, whole and on the CPU. Collective: every rank calls it, those with `keep` get them."""
    found = {name: whole(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found if keep else {}


def all_weights(model: nn.Module, *, keep: bool = True) -> Named:
    """The whole state dict on the CPU. Collective, like `learned_weights`."""
    found = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    return found if keep else {}


def load_learned_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts the parameters of a checkpoint in place."""
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if learned.keys() != weights.keys():
        raise AuroraError("the checkpoint holds other parameters than this stage trains: "
                          f"{', '.join(sorted(learned.keys() ^ weights.keys())[:3])}")
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(like(weights[name], parameter))


def optimizer_state(model: nn.Module, optimizer: Optimizer, *, keep: bool = True) -> dict[str, Named]:
    """The optimizer's tensors by parameter name, whole and on the CPU. Collective, like `learned_weights`."""
    state = {name: {key: whole(value) for key, value in optimizer.state[parameter].items()}
             for name, parameter in model.named_parameters() if parameter in optimizer.state}
    return state if keep else {}


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Named]) -> None:
    """Puts an optimizer's state in place."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered: dict[int, dict[str, Any]] = {}
    for index, parameter in enumerate(flat):
        stored = state.get(names[parameter])
        if stored is not None:
            numbered[index] = {key: like(value, parameter) for key, value in stored.items()}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def whole(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU, gathered when it is sharded."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.to("cpu", copy=True)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """The value sharded as the parameter is; scalars such as step counts stay whole."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
