"""Several processes: what every rank must agree on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.recipe import TrainerOptions
from aurora.types import IGNORE, Frames, PackedBatch

T = TypeVar("T")
_groups: dict[str, dist.ProcessGroup] = {}  # of this process, by what they are for
BAD_INPUT = 2  # the exit status after an AuroraError


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


def most_over_ranks(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers. Collective."""
    if world_size() == 1:
        return number
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


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
    first = world_size() == 1 or dist.get_rank() == 0
    # a process that ends inside of its groups aborts now and then
    leave()
    if first:
        raise AuroraError(problem)
    raise SystemExit(BAD_INPUT)


def shared_group(name: str = "checkpoints") -> dist.ProcessGroup | None:
    """A group of all processes that works on the CPU, for what runs beside training; None with one process.

    Collective the first time that a name is asked for.
    """
    if world_size() == 1:
        return None
    if name not in _groups:
        _groups[name] = dist.new_group(backend="gloo")
    return _groups[name]


def barrier() -> None:
    """Waits until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Ends the group once nobody waits for anybody."""
    if dist.is_initialized():
        # on the CPU: nobody may have chosen a GPU yet
        dist.barrier(group=shared_group("words"))
        _groups.clear()
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
        wanted = most_over_ranks(wanted, batch.tokens.device)
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


def reading(strategy: Any, data_ranks: int) -> dict[str, int]:
    """Which share of the rows this process reads: neighbours may read the same one together."""
    together = strategy.world_size // data_ranks
    return {"num_replicas": data_ranks, "rank": strategy.global_rank // together}


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


def require_devices(options: TrainerOptions) -> None:
    """AuroraError when this machine does not have what the options ask for."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    wanted = {"gpu": cuda or mps, "cuda": cuda, "mps": mps}
    if not wanted.get(options.accelerator, True):
        raise AuroraError(f"trainer.accelerator is {options.accelerator}, and torch finds no such device on this "
                          "machine; trainer.accelerator=cpu trains without one")
    count = local_devices(options)
    if (options.accelerator == "cpu" or not (cuda or mps)) and isinstance(options.devices, list):
        raise AuroraError(f"trainer.devices {options.devices} is a list of GPUs; on a CPU it is a number of processes")
    if options.accelerator in ("gpu", "cuda") and cuda:
        there = torch.cuda.device_count()
        given = options.devices if isinstance(options.devices, list) else [count - 1]
        if max(given, default=0) >= there:
            raise AuroraError(f"trainer.devices is {options.devices}, and this machine has {there} GPUs")
