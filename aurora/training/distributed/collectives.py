"""What several processes do together: sums, gathering, agreeing on an error, and noticing that a peer is gone."""

import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from aurora.errors import AuroraError, LostProcess

T = TypeVar("T")
_groups: dict[str, dist.ProcessGroup] = {}  # of this process, by purpose
BAD_INPUT = 2  # the exit status after an AuroraError


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank_zero() -> bool:
    """Whether this is the first process, also before the process group exists."""
    return _rank() == 0


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The sums of the values over all ranks; exact for counts. Collective."""
    if world_size() == 1:
        return values
    # Accelerators such as MPS have no float64, but those run one process.
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def max_over_ranks(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers. Collective."""
    if world_size() == 1:
        return number
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all ranks, by rank. Collective."""
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value, group=group or cpu_group("objects"))
    return everyone


def on_all_ranks(work: Callable[[], T]) -> T:
    """The result of the work here, once it succeeded on all ranks. Collective.

    When it failed on one, all end: rank 0 with an AuroraError that names the rank, the others silently.
    """
    if world_size() == 1:
        return work()
    try:
        mine, problem = work(), None
    except (AuroraError, OSError) as error:
        mine, problem = None, f"{error} (rank {dist.get_rank()} on {socket.gethostname()})"
    exit_all_ranks(next((text for text in gather(problem) if text is not None), None))
    return mine  # type: ignore[return-value]


def on_rank_zero(work: Callable[[], object]) -> None:
    """Does the work on rank 0. When it fails there, all ranks end. Collective."""
    on_all_ranks(lambda: work() if rank_zero() else None)


def exit_all_ranks(problem: str | None) -> None:
    """Ends every rank for a problem that all of them know; rank 0 reports it. None: nothing happens."""
    if problem is None:
        return
    first = rank_zero()
    # a process that exits inside of its groups aborts now and then
    destroy_process_group()
    if first:
        raise AuroraError(problem)
    raise SystemExit(BAD_INPUT)


def cpu_group(name: str = "checkpoints") -> dist.ProcessGroup | None:
    """A gloo group of all processes for work that runs asynchronously to training; None with one process.

    Collective the first time that a name is asked for.
    """
    if world_size() == 1:
        return None
    if name not in _groups:
        _groups[name] = dist.new_group(backend="gloo")
    return _groups[name]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def destroy_process_group() -> None:
    """Barrier, then destroys the process group."""
    if dist.is_initialized():
        # on the CPU: no GPU may have been chosen yet
        dist.barrier(group=cpu_group("objects"))
        _groups.clear()
        dist.destroy_process_group()


# ---- peer failure ----------------------------------------------------------------------------------------------

# What gloo, NCCL and the store say when the other end is gone or no longer answers. Other errors of theirs, such as
# collectives that do not match, are defects of ours, whose traceback is wanted.
PEER_GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|socket closed|pair closure|failed to recv|got 0 bytes|"
    r"connection refused|connection was likely closed|timed out (waiting|connecting)|wait timeout|socket timeout|"
    r"remote process exited|ncclremoteerror|communicator was aborted|collective operation timeout", re.IGNORECASE)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error is what a process gets when another one is gone."""
    if isinstance(error, LostProcess):
        return True
    text = str(error)
    network = isinstance(error, dist.DistError) or "gloo/" in text or "NCCL" in text
    return isinstance(error, RuntimeError) and network and PEER_GONE.search(text) is not None


@contextmanager
def peer_failures_reported(folder: Path, step: Callable[[], int | None]) -> Iterator[None]:
    """Raises LostProcess, one line, when another process is lost in the block; the traceback goes to `folder`.

    `step` gives the optimizer step; None: not while training.
    """
    try:
        yield
    except LostProcess:
        raise
    except Exception as error:
        if not is_peer_failure(error):
            raise
        kept = keep_traceback(folder, error)
        done = step()
        when = "outside of training" if done is None else f"after step {done}"
        # the library's first sentence, without the place in its own source
        reason = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).partition(". ")[0]
        raise LostProcess(
            f"rank {_rank()} on {socket.gethostname()} lost another process {when}, which was killed or has reported "
            f"its own failure ({reason[:200]}). The same command resumes from the last checkpoint; {kept}"
        ) from error


def keep_traceback(folder: Path, error: BaseException) -> str:
    """Appends a traceback to this rank's file below `folder`; the sentence that says so."""
    path = folder / f"rank-{_rank()}.txt"
    # on a full disk, or a file server that went with the other process
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines([*traceback.format_exception(error), "\n"])
        return f"{path} has the traceback"
    return "AURORA_DEBUG=1 shows the traceback"


def _rank() -> int:
    """This process's, also before the process group exists."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
