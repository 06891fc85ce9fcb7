"""Several processes: sharding, what every rank must agree on, and recomputing activations."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from aurora.adapters.attach import sharded_alone
from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.recipe import TrainerOptions
from aurora.types import IGNORE, Frames, PackedBatch

T = TypeVar("T")
BAD_INPUT = 2  # the exit status after an AuroraError


def build_strategy(options: TrainerOptions, nodes: int = 1) -> Strategy | str:
    """Lightning's strategy for the options, on so many machines."""
    if options.strategy == "ddp":
        return DDPStrategy()
    if options.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=nodes * local_devices(options), tensor_parallel_size=1)
    return "auto"


def blocks(model: AuroraModel) -> Iterator[nn.Module]:
    """The blocks of the vision encoder and of the backbone: what is sharded and recomputed as one."""
    for part in (model.vision, model.backbone):
        yield from (module for module in part.modules() if isinstance(module, part.block_class))


def shard(model: AuroraModel, mesh: DeviceMesh) -> None:
    """FSDP2 over every block, the connector, a tuned initial state and the rest; embeddings and head belong to the
    root, whose forward gathers them."""
    units = [*blocks(model), model.connector, *sharded_alone(model)]
    _require_one_dtype(model, units)
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _require_one_dtype(model: AuroraModel, units: list[nn.Module]) -> None:
    """AuroraError when what learns outside of the units is of several dtypes, which FSDP2 does not shard together."""
    inside = {parameter for unit in units for parameter in unit.parameters()}
    learned = {parameter.dtype for parameter in model.parameters()
               if parameter.requires_grad and parameter not in inside}
    if len(learned) > 1:
        raise AuroraError("strategy fsdp with precision bf16-true cannot train a slot whole beside a float32 LoRA on "
                          "layers outside of the blocks; leave those layers out, or take precision bf16-mixed")


def recompute_blocks(model: AuroraModel) -> None:
    """Makes every block's activations again in the backward pass instead of keeping them."""
    for block in blocks(model):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The sums of the values over all ranks; exact for counts."""
    if world_size() == 1:
        return values
    # Accelerators such as MPS have no float64, but those run one process.
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def from_first_rank(number: int) -> int:
    """The number of rank 0, on every rank. Collective."""
    if world_size() == 1:
        return number
    box: list[Any] = [number]
    dist.broadcast_object_list(box, src=0)
    return int(box[0])


def gather(value: T) -> list[T]:
    """What every rank gives, by rank. Collective."""
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value, group=shared_group("words"))
    return everyone


def agreed(work: Callable[[], T]) -> T:
    """What the work gives here, once it was done on all ranks. Collective.

    When it failed on one, all end: rank 0 with an AuroraError that says so, the others without a word.
    """
    if world_size() == 1:
        return work()
    try:
        mine, problem = work(), None
    except (AuroraError, OSError) as error:
        mine, problem = None, f"{error} (rank {dist.get_rank()} on {socket.gethostname()})"
    end_together(next((said for said in gather(problem) if said is not None), None))
    return mine  # type: ignore[return-value]


def end_together(problem: str | None) -> None:
    """Ends every rank for a problem that all of them know; it is said once."""
    if problem is None:
        return
    if world_size() == 1 or dist.get_rank() == 0:
        raise AuroraError(problem)
    raise SystemExit(BAD_INPUT)


@functools.lru_cache(maxsize=1)
def _groups() -> dict[str, dist.ProcessGroup]:
    return {}


def shared_group(name: str = "checkpoints") -> dist.ProcessGroup | None:
    """A group of all processes that works on the CPU, for what runs beside training; None with one process.

    Collective the first time that a name is asked for.
    """
    if world_size() == 1:
        return None
    if name not in _groups():
        _groups()[name] = dist.new_group(backend="gloo")
    return _groups()[name]


def barrier() -> None:
    """Waits until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Ends the group once nobody waits for anybody."""
    if dist.is_initialized():
        barrier()
        _groups().clear()
        dist.destroy_process_group()


def with_agreed_frames(batch: PackedBatch, model: AuroraModel) -> PackedBatch:
    """The row with blank frames added, so that every rank calls the vision encoder equally often.

    A rank that skips the encoder would leave the others waiting in its collectives. Blank frames are a sequence of
    their own without targets: the gradients that they add are zero.
    """
    if world_size() == 1:
        return batch
    wanted = max(1, len(batch.frames))
    if model.vision.prepare.resize == "keep_aspect":
        most = torch.tensor(wanted, device=batch.tokens.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        wanted = int(most)
    for _ in range(wanted - len(batch.frames)):
        batch = _with_blank_frame(batch, model)
    return batch


def _with_blank_frame(batch: PackedBatch, model: AuroraModel) -> PackedBatch:
    prepare, device = model.vision.prepare, batch.tokens.device
    height, width = prepare.shape(prepare.size, prepare.size)
    keep = model.merge.keep(prepare.patches(height, width), model.vision.depth, 1.0)
    start = batch.tokens.shape[0]
    positions = torch.arange(start, start + keep, device=device).unsqueeze(0)
    pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device)
    return batch._replace(
        tokens=_extended(batch.tokens, keep, 0),
        targets=_extended(batch.targets, keep, IGNORE),
        cu_seqlens=_extended(batch.cu_seqlens, 1, start + keep),
        frames=(*batch.frames, Frames(pixels, positions)),
    )


def _extended(tensor: Tensor, count: int, value: int) -> Tensor:
    return torch.cat([tensor, tensor.new_full((count,), value)])


def local_devices(options: TrainerOptions) -> int:
    """Processes that the options ask for on this machine."""
    devices: Any = options.devices
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int) and devices > 0:
        return devices
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() if options.accelerator != "cpu" and torch.cuda.is_available() else 1
    raise AuroraError(f"trainer.devices {devices!r} is unknown; a number, a list of numbers or auto is right")
