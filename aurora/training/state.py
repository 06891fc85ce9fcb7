"""What a checkpoint holds of the learned weights and the optimizer, by parameter name.

Tensors stay sharded as they are: torch's distributed checkpoint cuts them anew for another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from aurora.errors import AuroraError
from aurora.training.checkpoints import Checkpoint

Named = dict[str, Tensor]
WEIGHTS, OPTIMIZER, AVERAGE = "weights.", "optimizer.", "average."


def learned_tensors(model: nn.Module, optimizer: Optimizer) -> Named:
    """`weights.NAME` of all that learns and `optimizer.KEY.NAME` of the optimizer's memory of it."""
    found = {f"{WEIGHTS}{name}": parameter.detach() for name, parameter in _learned(model).items()}
    for name, parameter in _learned(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value.shape == parameter.shape and value.dim():
                found[f"{OPTIMIZER}{key}.{name}"] = value.detach()
    return found


def optimizer_scalars(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, float]]:
    """What the optimizer keeps of each parameter as a number: how often it was changed."""
    return {name: {key: float(value) for key, value in optimizer.state[parameter].items()
                   if not (value.shape == parameter.shape and value.dim())}
            for name, parameter in _learned(model).items() if parameter in optimizer.state}


def restore(
    model: nn.Module, optimizer: Optimizer, checkpoint: Checkpoint, group: dist.ProcessGroup | None, *, also: Named
) -> None:
    """Puts weights, optimizer and what is in `also` back as they were. Collective with a `group`, which sharded tensors
    need.

    AuroraError when the checkpoint is of other parameters.
    """
    learned, there = _learned(model), checkpoint.names()
    weights = {name.removeprefix(WEIGHTS) for name in there if name.startswith(WEIGHTS)}
    if learned.keys() != weights:
        raise AuroraError("the checkpoint holds other parameters than this stage trains: "
                          f"{', '.join(sorted(learned.keys() ^ weights)[:3])}")
    tensors = {f"{WEIGHTS}{name}": parameter.detach() for name, parameter in learned.items()} | also
    memory: dict[str, dict[str, Any]] = {name: {key: torch.tensor(value) for key, value in scalars.items()}
                                         for name, scalars in checkpoint.state["optimizer"].items()}
    for name in there:
        if name.startswith(OPTIMIZER):
            key, _, parameter = name.removeprefix(OPTIMIZER).partition(".")
            tensors[name] = memory[parameter][key] = torch.zeros_like(learned[parameter].detach())
    checkpoint.load(tensors, group)
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in learned.items()}
    numbered = {index: memory[names[parameter]] for index, parameter in enumerate(flat) if names[parameter] in memory}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def _learned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def all_weights(model: nn.Module, *, keep: bool = True) -> Named:
    """The whole state dict on the CPU. Collective: every rank calls it, those with `keep` get it."""
    found = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    return found if keep else {}


def whole(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU, gathered when it is sharded."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.to("cpu", copy=True)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether nothing that this rank holds of some tensors is NaN or infinite."""
    return all(bool(torch.isfinite(local(tensor)).all()) for tensor in tensors.values())


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
