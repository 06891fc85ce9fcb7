"""What a checkpoint holds of model, optimizer and loops: tensors by name, sharded as they are, and values for JSON."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from aurora.errors import AuroraError
from aurora.training.checkpoint.layout import Checkpoint, Tensors
from aurora.training.distributed.collectives import cpu_group, local

WEIGHTS, OPTIMIZER, AVERAGE = "weights.", "optimizer.", "average."
LAYOUT = ("params", "fused", "foreach", "capturable", "differentiable")
"""Keys of a parameter group that say how this process computes, not what."""


def named_tensors(model: nn.Module, optimizer: Optimizer | None, average: Mapping[str, Tensor]) -> Tensors:
    """`weights.NAME` of every trained parameter, `optimizer.KEY.NAME` of the optimizer's state, `average.NAME`."""
    trained = trained_parameters(model)
    found = {f"{WEIGHTS}{name}": parameter.detach() for name, parameter in trained.items()}
    for name, key, value in _optimizer_state(trained, optimizer):
        if isinstance(value, Tensor) and value.dim():
            found[f"{OPTIMIZER}{key}.{name}"] = value.detach()
    return found | {f"{AVERAGE}{name}": value for name, value in average.items()}


def optimizer_scalars(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """JSON: the groups' options such as the learning rate, and per parameter what the optimizer keeps as a number."""
    states: dict[str, dict[str, float]] = {}
    for name, key, value in _optimizer_state(trained_parameters(model), optimizer):
        if not isinstance(value, Tensor) or not value.dim():
            states.setdefault(name, {})[key] = float(value)
    groups = [{key: value for key, value in group.items() if key not in LAYOUT} for group in optimizer.param_groups]
    return {"groups": groups, "states": states}


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer | None, average: Tensors, *, sharded: bool
            ) -> None:
    """Fills weights, average and optimizer from a checkpoint, in place. Collective when sharded.

    AuroraError when the checkpoint is of other parameters.
    """
    trained, shapes = trained_parameters(model), checkpoint.shapes()
    weights = {name.removeprefix(WEIGHTS) for name in shapes if name.startswith(WEIGHTS)}
    if trained.keys() != weights:
        raise AuroraError("the checkpoint holds other parameters than this stage trains: "
                          f"{', '.join(sorted(trained.keys() ^ weights)[:3])}")
    tensors = {f"{WEIGHTS}{name}": parameter.detach() for name, parameter in trained.items()}
    tensors |= {f"{AVERAGE}{name}": value for name, value in average.items()}
    if missing := tensors.keys() - shapes.keys():
        raise AuroraError(f"the checkpoint has no {sorted(missing)[0]}")
    states: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        states = {name: {key: torch.tensor(value) for key, value in scalars.items()}
                  for name, scalars in checkpoint.state["optimizer"]["states"].items()}
        for name in shapes:
            if name.startswith(OPTIMIZER):
                key, _, owner = name.removeprefix(OPTIMIZER).partition(".")
                like = trained[owner].detach()
                space = torch.zeros_like(like) if shapes[name] == like.shape else like.new_zeros(shapes[name])
                tensors[name] = states.setdefault(owner, {})[key] = space
    checkpoint.load(tensors, cpu_group() if sharded else None)
    if optimizer is not None:
        _load_optimizer(optimizer, {parameter: name for name, parameter in trained.items()}, states,
                        checkpoint.state["optimizer"]["groups"])


def _load_optimizer(optimizer: Optimizer, names: Mapping[nn.Parameter, str], states: Mapping[str, dict[str, Any]],
                    groups: list[dict[str, Any]]) -> None:
    current = optimizer.state_dict()["param_groups"]
    if len(current) != len(groups):
        raise AuroraError(f"the checkpoint's optimizer has {len(groups)} parameter groups, this stage's {len(current)}")
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {number: states[names[p]] for number, p in enumerate(ordered) if names[p] in states}
    optimizer.load_state_dict({"state": numbered, "param_groups": [
        {**now, **before} for now, before in zip(current, groups, strict=True)]})


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizer_state(trained: Mapping[str, nn.Parameter], optimizer: Optimizer | None
                     ) -> Iterator[tuple[str, str, Any]]:
    if optimizer is None:
        return
    state = optimizer.state
    for name, parameter in trained.items():
        for key, value in state.get(parameter, {}).items():
            yield name, key, value


def whole(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU. Collective when it is sharded."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to("cpu", copy=True)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity in the part of this rank."""
    return all(bool(torch.isfinite(local(tensor)).all()) for tensor in tensors.values())


# ---- progress of Lightning's loops -----------------------------------------------------------------------------


def settle_progress(loops: dict[str, Any], *, validating: bool) -> None:
    """Makes the saved progress of Lightning's loops that of the last optimizer step that was taken.

    A checkpoint may be written before the next step, inside of it, or inside of a validation: a step that has begun is
    taken back, to the state in which Lightning saves at the end of a training batch; a validation that has begun runs
    again from its first batch when training resumes.
    """
    fit = loops["fit_loop"]
    batches = fit["epoch_loop.batch_progress"]
    if batches["current"]["ready"] > batches["current"]["processed"]:
        for count in (batches["total"], batches["current"]):
            done = count["processed"]
            count.update(ready=done, started=done, processed=done, completed=max(0, done - 1))
        batches["is_last_batch"] = False
        loop = fit["epoch_loop.state_dict"]
        loop["_batches_that_stepped"] = max(0, loop["_batches_that_stepped"] - 1)
    evaluation = fit["epoch_loop.val_loop.batch_progress"]
    unfinished = evaluation["total"]["processed"] < evaluation["total"]["ready"] or not evaluation["is_last_batch"]
    if validating and unfinished:
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        evaluation.update(total=dict(begun), current=dict(begun), is_last_batch=False)
