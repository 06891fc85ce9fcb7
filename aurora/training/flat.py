"""FSDP1, which is Lightning's `FSDPStrategy`: of every unit one flat tensor, cut into shards. For GPUs.

Parameters stay objects of their own, but what they hold is the part of them that lies in this rank's shard: one
dimension, empty where that is none. Whole shapes are known before, and from the state dicts of torch's distributed
checkpoint, which gives each parameter as a DTensor under its own name.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.optim import Optimizer

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.blocks import blocks
from aurora.training.parallel import gather, reading, sum_over_ranks
from aurora.training.recipe import TrainerOptions

WRAPPER = "_fsdp_wrapped_module."  # stands in the names of parameters


class Flat(FSDPStrategy):
    """FSDP1 over all processes."""

    def __init__(self, *, data_ranks: int) -> None:
        """`data_ranks` is how many of the processes read rows of their own."""
        super().__init__()
        self.data_ranks = data_ranks
        self._weights_mesh: DeviceMesh | None = None

    @property
    def weights_mesh(self) -> DeviceMesh:
        """Where the weights lie: [shards]. There once the processes have met."""
        assert self._weights_mesh is not None
        return self._weights_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return reading(self, self.data_ranks)

    def setup_environment(self) -> None:
        super().setup_environment()
        self._weights_mesh = init_device_mesh(self.root_device.type, (self.world_size,))


def flatten(model: AuroraModel, strategy: Flat, options: TrainerOptions) -> AuroraModel:
    """FSDP1 over every block, the connector and the rest. AuroraError for what cannot lie in one tensor.

    What is given back stands in for the model, and shows its attributes.
    """
    units = {*blocks(model), model.connector}
    _require_one_dtype(model, units)
    if options.precision == "bf16-gathered" and model.backbone.initial_state is not None:
        raise AuroraError("trainer.strategy=fsdp1 with precision=bf16-gathered would gather a tuned initial state as "
                          "bfloat16; trainer.strategy=fsdp leaves it in float32, as does precision=bf16-mixed")
    with warnings.catch_warnings():
        # of memory, at length for every block with a LoRA: gradients are made of its frozen weights too
        warnings.filterwarnings("ignore", message=".* has both parameters with requires_grad", category=UserWarning)
        wrapped = FullyShardedDataParallel(
            model,
            device_mesh=strategy.weights_mesh,
            device_id=strategy.root_device,
            use_orig_params=True,  # without it nothing in a unit may be frozen beside what learns
            auto_wrap_policy=CustomPolicy(lambda module: module in units),
            sharding_strategy=(ShardingStrategy.FULL_SHARD if options.reshard_after_forward
                               else ShardingStrategy.SHARD_GRAD_OP),
            mixed_precision=_gathered(options),
        )
    return cast(AuroraModel, wrapped)


def is_flat(model: nn.Module) -> bool:
    """Whether a model's weights lie in flat shards."""
    return isinstance(model, FullyShardedDataParallel)


def plain_name(name: str) -> str:
    """The name of a parameter in a model that is not wrapped."""
    return name.replace(WRAPPER, "")


def flat_norms(tensors: Mapping[str, Sequence[Tensor]], device: torch.device) -> dict[str, float]:
    """The norm of each group of tensors, of which every rank holds another part; groups without any are left out.
    Collective."""
    here = [float(nn.utils.get_total_norm(group)) ** 2 if group else 0.0 for group in tensors.values()]
    found = sum_over_ranks([*here, *(float(len(group)) for group in tensors.values())], device)
    squares, counts = found[:len(here)], found[len(here):]
    return {name: math.sqrt(square) for name, square, count in zip(tensors, squares, counts, strict=True) if count}


def flat_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its name, sharded; changing them changes nothing. Collective."""
    return cast(dict[str, Tensor], get_model_state_dict(model))


def flat_moments(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """What the optimizer keeps of each parameter, by name, sharded. Collective, once every rank has taken a step."""
    return cast(dict[str, dict[str, Tensor]], get_optimizer_state_dict(model, optimizer)["state"])


def flat_scalars(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, float]]:
    """The numbers that the optimizer keeps of each parameter, by name; empty before the first step. Collective."""
    here = {plain_name(name): {key: float(value) for key, value in optimizer.state[parameter].items()
                               if not value.dim()}
            for name, parameter in model.named_parameters() if parameter.numel() and parameter in optimizer.state}
    return {name: scalars for part in gather(here) for name, scalars in part.items()}


def put_flat(model: nn.Module, optimizer: Optimizer, weights: dict[str, Tensor],
             memory: dict[str, dict[str, Tensor]]) -> None:
    """Puts all weights, and what the optimizer is to remember, where `flat_weights` and `flat_moments` read them.
    Collective."""
    set_model_state_dict(model, dict(weights))
    if memory:
        state: Any = get_optimizer_state_dict(model, optimizer) | {"state": memory}
        set_optimizer_state_dict(model, optimizer, state)


def _gathered(options: TrainerOptions) -> MixedPrecision | None:
    """In which dtypes weights are gathered and gradients reduced; None: in their own. Blocks are given what is in the
    right dtypes: a state must stay wide."""
    if options.precision != "bf16-gathered":
        return None
    return MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False,
                          cast_root_forward_inputs=False)


def _require_one_dtype(model: AuroraModel, units: set[nn.Module]) -> None:
    inside = {parameter for unit in units for parameter in unit.parameters()}
    for part in [[*unit.parameters()] for unit in units] + [[p for p in model.parameters() if p not in inside]]:
        found = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in part})
        if len(found) > 1:
            raise AuroraError("trainer.strategy=fsdp1 makes one tensor of the weights of a block, which are of several "
                              f"dtypes here ({', '.join(found)}); trainer.strategy=fsdp takes them")
