"""Layouts of weights over processes (DDP, FSDP2, hybrid FSDP2); sharding, recomputing and compiling blocks.

A block's `forward` is wrapped in place, so that the names of its parameters stay.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.optim import Optimizer
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.recipe import TrainerOptions
from aurora.training.distributed.rendezvous import require_layout

# ---- strategies ------------------------------------------------------------------------------------------------


class _SeveralProcesses(Strategy):
    """What DDP and FSDP2 have in common here."""

    data_ranks: int  # how many of the processes read rows of their own

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Which share of the rows this process reads: a sequence-parallel group reads the same."""
        together = self.world_size // self.data_ranks
        return {"num_replicas": self.data_ranks, "rank": self.global_rank // together}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The one that rank 0 found whole."""
        found: dict[str, Any] = self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path))
        return found


class DDP(_SeveralProcesses, DDPStrategy):
    """The whole model in every process."""

    def __init__(self, *, data_ranks: int) -> None:
        super().__init__()
        self.data_ranks = data_ranks


class FSDP2(_SeveralProcesses, ModelParallelStrategy):
    """FSDP2 over all processes, or over groups of `shard_size` processes that hold a whole copy each."""

    weights_mesh: DeviceMesh  # [shards], or [copies, shards]; there once the process group exists

    def __init__(self, *, processes: int, shard_size: int, data_ranks: int, offload: bool) -> None:
        # gradients that lie in main memory are summed there
        backend = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, process_group_backend=backend)
        self.processes, self.shard_size, self.data_ranks, self.offload = processes, shard_size, data_ranks, offload
        self.copies = processes // shard_size  # groups that hold all of the weights

    def setup_environment(self) -> None:
        super().setup_environment()
        if self.copies == 1:
            self.weights_mesh = self.device_mesh["data_parallel"]
        else:
            shape = (self.copies, self.shard_size)
            self.weights_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("copies", "shards"))

    def model_to_device(self) -> None:
        """Offloaded shards stay in main memory; buffers are needed where the arithmetic is."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.model is not None
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))

    # the module puts its tensors into checkpoints by name, and every rank writes its own part

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Collective."""
        self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath), storage_options=storage_options)

    def teardown(self) -> None:
        super().teardown()
        self.checkpoint_io.teardown()


def is_sharded(strategy: Strategy) -> bool:
    """Whether every process holds only a part of the weights."""
    return isinstance(strategy, FSDP2) and strategy.processes > 1


def build_strategy(options: TrainerOptions, nodes: int = 1) -> Strategy | str:
    """Lightning's strategy for the options, on so many machines. AuroraError like `require_layout`."""
    processes = require_layout(options, nodes)
    data_ranks = processes // options.sequence_parallel
    if options.strategy == "auto":
        return "auto"
    if options.strategy == "ddp":
        return DDP(data_ranks=data_ranks)
    shard_size = processes if options.strategy == "fsdp" else options.shard_size or processes // nodes
    return FSDP2(processes=processes, shard_size=shard_size, data_ranks=data_ranks, offload=options.cpu_offload)


# ---- sharding --------------------------------------------------------------------------------------------------


def apply_sharding(model: AuroraModel, strategy: Strategy, options: TrainerOptions) -> None:
    """Shards the model with FSDP2 where the strategy does. Collective then. AuroraError for another FSDP strategy."""
    if isinstance(strategy, FSDP2):
        shard(model, strategy.weights_mesh, options)
    elif isinstance(strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy):
        raise AuroraError(f"{type(strategy).__name__} does not know which blocks of the model are sharded; "
                          "Trainer(strategy=aurora.training.distributed.strategies.build_strategy(options)) or "
                          "`aurora train trainer=fsdp` does")


def shard(model: AuroraModel, mesh: DeviceMesh, options: TrainerOptions) -> None:
    """FSDP2 over every block, the connector, a tuned initial state and the rest; embeddings and head belong to the
    root, whose forward gathers them.

    Gradients are summed in float32 whatever the weights are of. A unit in which nothing learns has none to sum.
    """
    # always float32: a sharded unit has one learned dtype
    alone: list[nn.Module] = [] if model.backbone.initial_state is None else [model.backbone.initial_state]
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


def gradient_sync(strategy: Strategy, net: Any, options: TrainerOptions, *, closes: bool
                  ) -> AbstractContextManager[None]:
    """No-sync until the step closes: leaves out of the backward pass what need not be summed over the ranks before."""
    if isinstance(strategy, DDPStrategy) and not closes:
        blocked: AbstractContextManager[None] = strategy.block_backward_sync()
        return blocked
    if isinstance(strategy, FSDP2):
        if options.defer_gradient_sync:
            net.set_requires_gradient_sync(closes)
        elif strategy.copies > 1:
            # shards are summed inside of the node for every row; across nodes once per step
            net.set_requires_all_reduce(closes)
    return nullcontext()


def free_gathered(model: nn.Module) -> None:
    """Frees whole weights that a forward pass has gathered, as the backward pass would have done."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shows_gradients(strategy: Strategy, options: TrainerOptions) -> bool:
    """Whether gradients can be looked at before the step closes: not while they wait to be summed."""
    whole_group = not isinstance(strategy, FSDP2) or strategy.copies == 1
    return whole_group and not options.defer_gradient_sync


def _require_one_dtype(model: AuroraModel, units: list[nn.Module]) -> None:
    """AuroraError when what learns outside of the units is of several dtypes, which FSDP2 does not shard together."""
    inside = {parameter for unit in units for parameter in unit.parameters()}
    learned = {parameter.dtype for parameter in model.parameters()
               if parameter.requires_grad and parameter not in inside}
    if len(learned) > 1:
        raise AuroraError("strategy fsdp with precision bf16-true cannot train a slot whole beside a float32 LoRA on "
                          "layers outside of the blocks; leave those layers out, or take precision bf16-mixed")


# ---- blocks ----------------------------------------------------------------------------------------------------

KERNELS = "aurora"  # the namespace of operators of our own
SAVED_OPS = frozenset({
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
})
"""Operators whose results selective checkpointing saves: where the arithmetic is."""


def blocks(model: AuroraModel) -> Iterator[nn.Module]:
    """The blocks of the vision encoder and of the backbone: what is sharded and recomputed as one."""
    for part in (model.vision, model.backbone):
        yield from blocks_of(part)


def blocks_of(part: Any) -> Iterator[nn.Module]:
    """The blocks of one of them."""
    yield from (module for module in part.modules() if isinstance(module, part.block_class))


def prepare_blocks(model: AuroraModel, options: TrainerOptions) -> None:
    """Compiling and activation checkpointing, as the options say."""
    if options.compile == "block":
        compile_blocks(model)
    if options.activation_checkpointing != "none":
        checkpoint_blocks(model, selective=options.activation_checkpointing == "selective")


def checkpoint_blocks(model: AuroraModel, *, selective: bool = False) -> None:
    """Activation checkpointing: the activations of a block are computed again in the backward pass, in the backbone all
    but the results of its products where it is `selective`.

    The encoder's blocks add to a product's result in place, so nothing of theirs could be saved.
    """
    saving = functools.partial(create_selective_checkpoint_contexts, _save_expensive) if selective else noop_context_fn
    for part, contexts in ((model.vision, noop_context_fn), (model.backbone, saving)):
        for block in blocks_of(part):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def compile_blocks(model: AuroraModel, backend: str = "inductor") -> None:
    """Compiles what stands between our kernels, for rows of any length."""
    for block in blocks(model):
        block.forward = torch.compile(block.forward, dynamic=True, backend=backend)


def _save_expensive(context: Any, operator: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    saved = operator in SAVED_OPS or operator.namespace == KERNELS
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE
