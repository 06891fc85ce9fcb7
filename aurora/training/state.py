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
from aurora.training.flat import flat_moments, flat_scalars, flat_weights, is_flat, plain_name, put_flat

Named = dict[str, Tensor]
WEIGHTS, OPTIMIZER, AVERAGE = "weights.", "optimizer.", "average."


def learned_tensors(model: nn.Module, optimizer: Optimizer) -> Named:
    """`weights.NAME` of all that learns and `optimizer.KEY.NAME` of the optimizer's memory of it. Collective for flat
    shards."""
    learned, all_of_it = _learned(model), _weights(model)
    found = {f"{WEIGHTS}{name}": all_of_it[name] for name in learned}
    for name, values in _memory(model, optimizer).items():
        for key, value in values.items():
            if value.shape == all_of_it[name].shape and value.dim():
                found[f"{OPTIMIZER}{key}.{name}"] = value.detach()
    return found


def optimizer_scalars(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, float]]:
    """What the optimizer keeps of each parameter as a number: how often it was changed. Collective for flat shards."""
    if is_flat(model):
        return flat_scalars(model, optimizer)
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
    learned, there, all_of_it = _learned(model), checkpoint.names(), _weights(model)
    weights = {name.removeprefix(WEIGHTS) for name in there if name.startswith(WEIGHTS)}
    if learned.keys() != weights:
        raise AuroraError("the checkpoint holds other parameters than this stage trains: "
                          f"{', '.join(sorted(learned.keys() ^ weights)[:3])}")
    tensors = {f"{WEIGHTS}{name}": all_of_it[name] for name in learned} | also
    memory: dict[str, dict[str, Any]] = {name: {key: torch.tensor(value) for key, value in scalars.items()}
                                         for name, scalars in checkpoint.state["optimizer"].items()}
    for name in there:
        if name.startswith(OPTIMIZER):
            key, _, parameter = name.removeprefix(OPTIMIZER).partition(".")
            tensors[name] = memory[parameter][key] = torch.zeros_like(all_of_it[parameter])
    checkpoint.load(tensors, group)
    if is_flat(model):
        put_flat(model, optimizer, all_of_it, memory)
        return
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in learned.items()}
    numbered = {index: memory[names[parameter]] for index, parameter in enumerate(flat) if names[parameter] in memory}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def _learned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _weights(model: nn.Module) -> Named:
    """By name, those that learn among them; changing them changes the model, unless its shards are flat."""
    return flat_weights(model) if is_flat(model) else {name: p.detach() for name, p in model.named_parameters()}


def _memory(model: nn.Module, optimizer: Optimizer) -> Mapping[str, Mapping[str, Tensor]]:
    """What the optimizer keeps of each parameter, by name."""
    if not is_flat(model):
        return {name: optimizer.state[p] for name, p in _learned(model).items() if p in optimizer.state}
    return flat_moments(model, optimizer) if flat_scalars(model, optimizer) else {}


def all_weights(model: nn.Module, *, keep: bool = True) -> Named:
    """The whole state dict on the CPU. Collective: every rank calls it, those with `keep` get it."""
    tensors = flat_weights(model) if is_flat(model) else model.state_dict()
    found = {name: whole(tensor) for name, tensor in tensors.items()}
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
