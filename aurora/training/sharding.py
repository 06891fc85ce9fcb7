"""Weights, gradients and optimizer in shards: FSDP2 through Lightning, over all processes or inside of nodes."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.blocks import blocks
from aurora.training.flat import Flat, flatten
from aurora.training.parallel import local_devices, reading, require_devices
from aurora.training.recipe import TrainerOptions
from aurora.weights.adapters import sharded_alone


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, or over groups of `shard_size` neighbours that hold a whole copy each."""

    def __init__(self, *, processes: int, shard_size: int, data_ranks: int, offload: bool) -> None:
        """`data_ranks` is how many of the processes read rows of their own."""
        # gradients that lie in main memory are summed there
        backend = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, process_group_backend=backend)
        self.processes, self.shard_size, self.data_ranks, self.offload = processes, shard_size, data_ranks, offload
        self._weights_mesh: DeviceMesh | None = None

    @property
    def copies(self) -> int:
        """How many groups hold all of the weights."""
        return self.processes // self.shard_size

    @property
    def weights_mesh(self) -> DeviceMesh:
        """Where the weights lie: [shards], or [copies, shards]. There once the processes have met."""
        assert self._weights_mesh is not None
        return self._weights_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return reading(self, self.data_ranks)

    def setup_environment(self) -> None:
        super().setup_environment()
        if self.copies == 1:
            self._weights_mesh = self.device_mesh["data_parallel"]
        else:
            shape = (self.copies, self.shard_size)
            self._weights_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("copies", "shards"))

    def model_to_device(self) -> None:
        """Offloaded shards stay in main memory; what is no parameter is needed where it is computed with."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.model is not None
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))


class Copied(DDPStrategy):
    """DDP: the whole model in every process."""

    def __init__(self, *, data_ranks: int) -> None:
        super().__init__()
        self.data_ranks = data_ranks

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return reading(self, self.data_ranks)


def require_layout(options: TrainerOptions, nodes: int = 1) -> None:
    """AuroraError for a layout that is not possible on so many machines like this one."""
    processes = nodes * local_devices(options)
    if options.strategy == "fsdp1":
        require_gpus(options, processes)
    require_devices(options)
    if options.strategy != "auto":
        check_processes(options, processes)


def require_gpus(options: TrainerOptions, processes: int) -> None:
    """AuroraError where Lightning's `FSDPStrategy` does not run, or has nothing to do."""
    if options.accelerator == "cpu" or not torch.cuda.is_available():
        raise AuroraError("trainer.strategy=fsdp1, Lightning's FSDPStrategy, runs on GPUs only, and this process has "
                          "none; trainer=fsdp (FSDP2) shards as it does, on CPUs too")
    if processes == 1:
        raise AuroraError("trainer.strategy=fsdp1 shards over two GPUs or more, and here is one; trainer=gpu is right")


def check_processes(options: TrainerOptions, processes: int) -> None:
    """AuroraError when so many processes cannot be divided as the options say."""
    for key, size in (("sequence_parallel", options.sequence_parallel), ("shard_size", options.shard_size or 1)):
        if processes % size:
            raise AuroraError(f"trainer.{key} is {size}, which does not divide the {processes} processes")


def build_strategy(options: TrainerOptions, nodes: int = 1) -> Strategy | str:
    """Lightning's strategy for the options, on so many machines. AuroraError like `require_layout`."""
    require_layout(options, nodes)
    local = local_devices(options)
    processes = nodes * local
    data_ranks = processes // options.sequence_parallel
    if options.strategy == "auto":
        return "auto"
    if options.strategy == "ddp":
        return Copied(data_ranks=data_ranks)
    if options.strategy == "fsdp1":
        return Flat(data_ranks=data_ranks)
    shard_size = processes if options.strategy == "fsdp" else options.shard_size or local
    return Sharded(processes=processes, shard_size=shard_size, data_ranks=data_ranks, offload=options.cpu_offload)


def laid_out(model: AuroraModel, strategy: Strategy, options: TrainerOptions) -> AuroraModel:
    """The model with its weights where the strategy has them. Collective when it shards."""
    if isinstance(strategy, Flat):
        return flatten(model, strategy, options)
    if isinstance(strategy, Sharded):
        shard(model, strategy.weights_mesh, options)
    return model


def shard(model: AuroraModel, mesh: DeviceMesh, options: TrainerOptions) -> None:
    """FSDP2 over every block, the connector, a tuned initial state and the rest; embeddings and head belong to the
    root, whose forward gathers them.

    Gradients are summed in float32 whatever the weights are of. A unit in which nothing learns has none to sum.
    """
    alone = [*sharded_alone(model)]
    units = [*blocks(model), model.connector]
    _require_one_dtype(model, [*units, *alone])
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if options.cpu_offload else OffloadPolicy()
    # what blocks are given is in the right dtypes: a state must stay wide
    wide = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = narrow if options.precision == "bf16-gathered" else wide
    split = functools.partial(fully_shard, mesh=mesh, offload_policy=offload)
    for unit in alone:
        split(unit, mp_policy=wide)
    for unit in units:
        split(unit, mp_policy=policy, reshard_after_forward=options.reshard_after_forward)
    split(model, mp_policy=policy)


def gradients_when(strategy: Strategy, net: Any, options: TrainerOptions, *, closes: bool
                   ) -> AbstractContextManager[None]:
    """Leaves out of the backward pass what need not be summed over the ranks before the step closes."""
    if isinstance(strategy, DDPStrategy) and not closes:
        blocked: AbstractContextManager[None] = strategy.block_backward_sync()
        return blocked
    if isinstance(strategy, Flat) and options.defer_gradient_sync and not closes:
        deferred: AbstractContextManager[None] = net.no_sync()
        return deferred
    if isinstance(strategy, Sharded):
        if options.defer_gradient_sync:
            net.set_requires_gradient_sync(closes)
        elif strategy.copies > 1:
            # shards are summed inside of the node for every row; across nodes once per step
            net.set_requires_all_reduce(closes)
    return nullcontext()


def free_gathered(model: nn.Module) -> None:
    """Lets go of whole weights that a forward pass has gathered, which the backward pass would have done."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shows_gradients(strategy: Strategy, options: TrainerOptions) -> bool:
    """Whether gradients can be looked at before the step closes: not while they wait to be summed."""
    whole_group = not isinstance(strategy, Sharded) or strategy.copies == 1
    return whole_group and not options.defer_gradient_sync


def _require_one_dtype(model: AuroraModel, units: list[nn.Module]) -> None:
    """AuroraError when what learns outside of the units is of several dtypes, which FSDP2 does not shard together."""
    inside = {parameter for unit in units for parameter in unit.parameters()}
    learned = {parameter.dtype for parameter in model.parameters()
               if parameter.requires_grad and parameter not in inside}
    if len(learned) > 1:
        raise AuroraError("strategy fsdp with precision bf16-true cannot train a slot whole beside a float32 LoRA on "
                          "layers outside of the blocks; leave those layers out, or take precision bf16-mixed")
