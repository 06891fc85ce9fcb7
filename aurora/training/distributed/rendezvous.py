"""Which processes train together: ranks from the launcher's environment, devices of this machine, the process group.

torchrun, srun and Ray start the processes and give each its rank. Without them one process trains, or Lightning starts
`trainer.devices` of them on this machine.
"""

import hashlib
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from errno import EADDRINUSE
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.rendezvous import rendezvous

from aurora.config import Config, differences
from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions
from aurora.registry import SLOTS
from aurora.training.distributed.collectives import (
    BAD_INPUT,
    exit_all_ranks,
    gather,
    on_rank_zero,
    rank_zero,
    world_size,
)
from aurora.version import VERSION

GROUP_SECONDS = 1800.0  # that a collective may take at least; the watchdog is there before


class Rank(NamedTuple):
    """This process among all that a launcher has started."""

    rank: int
    world: int
    local: int  # among those of this node
    per_node: int
    launcher: str

    @property
    def nodes(self) -> int:
        """Machines that take part."""
        return self.world // self.per_node


def rank_from_env(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """What torchrun, srun or Ray have set in the environment; None when no launcher started this process.

    AuroraError when half of it is missing, or is not a number.
    """
    if "RANK" in environment:
        rank, world, local, per_node, _ = _numbers(
            environment, "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
            ("MASTER_ADDR",))
        found = Rank(rank, world, local, per_node, "torchrun")
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        world, rank, local, nodes, _ = _numbers(
            environment, "srun", ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES",
                                  "SLURM_JOB_ID"), ("SLURM_STEP_NODELIST",))
        found = Rank(rank, world, local, world // max(1, nodes), "srun")
    else:
        return None
    if found.world % found.per_node or found.local >= found.per_node:
        raise AuroraError(f"{found.launcher} started {found.world} processes, {found.per_node} of them on this node; "
                          "every node must have the same number")
    return found


def _numbers(environment: Mapping[str, str], launcher: str, numbers: Sequence[str], others: Sequence[str]) -> list[int]:
    """The variables that are numbers. AuroraError that names what a launcher would have set besides the first."""
    missing = [name for name in (*numbers, *others) if name not in environment]
    if missing:
        raise AuroraError(f"{numbers[0]} is set and {', '.join(missing)} not; {launcher} sets all of them, and without "
                          f"{numbers[0]} (`unset {numbers[0]}`) one process trains")
    for name in numbers:
        if not environment[name].isdecimal():
            raise AuroraError(f"the environment variable {name} is {environment[name]!r}, not the number that "
                              f"{launcher} sets")
    return [int(environment[name]) for name in numbers]


def refuse_restart(config: Config, *, launched: bool) -> None:
    """AuroraError for restart=true where the command is started again automatically."""
    if config.restart and (launched or "SLURM_JOB_ID" in os.environ):
        raise AuroraError("restart=true removes what the run has at every start, and a launcher or SLURM starts a "
                          "command again when a process is lost, which would lose the rest. Remove "
                          f"{config.run}/STAGE, or give another run=")


def fitted(options: TrainerOptions, rank: Rank | None) -> TrainerOptions:
    """The options with the launcher's number of processes. AuroraError when this machine or the options disagree."""
    if rank is None:
        return options
    if options.devices not in (1, "auto", rank.per_node):
        raise AuroraError(f"trainer.devices is {options.devices!r}, but {rank.launcher} started {rank.per_node} "
                          "processes on this node; leave trainer.devices out, or make them equal")
    gpus = torch.cuda.device_count() if _on_cuda(options) else rank.per_node
    if gpus < rank.per_node:
        raise AuroraError(f"{rank.launcher} started {rank.per_node} processes on this node, which sees {gpus} GPUs; "
                          "start one process per GPU, each of which sees all GPUs of its node")
    return replace(options, devices=rank.per_node)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Restores environment variables, signal handlers and torch's number of threads: nothing that a run sets survives
    it, also where Lightning's own teardown fails."""
    before, threads, first = dict(os.environ), torch.get_num_threads(), getattr(rank_zero_only, "rank", None)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.valid_signals() if main else ())}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        torch.set_num_threads(threads)
        rank_zero_only.rank = first


def init_process_group(rank: Rank, options: TrainerOptions) -> None:
    """Joins the other processes, unless the launcher has done so, as Ray does.

    AuroraError when that takes longer than `trainer.rendezvous_seconds`.
    """
    _set_torchrun_variables(rank)
    rank_zero_only.rank = rank.rank
    if rank.world == 1 or dist.is_initialized():
        return
    if _on_cuda(options):
        torch.cuda.set_device(rank.local)
    patience = timedelta(seconds=options.rendezvous_seconds)
    # a server of another kind that listens there but does not answer is waited for endlessly
    deadline = threading.Timer(1.5 * options.rendezvous_seconds, _give_up, [_why_alone(rank, options, "no answer")])
    deadline.daemon = True
    deadline.start()
    try:
        store = next(rendezvous("env://", rank.rank, rank.world, timeout=patience))[0]
    except (RuntimeError, ValueError) as error:
        raise AuroraError(_why_alone(rank, options, str(error))) from error
    finally:
        deadline.cancel()
    if rank.nodes == 1:
        # torchrun restarts a lost process beside the store in which the attempt before has left its keys
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
    # all are there now; from here on the watchdog notices what hangs
    longest = timedelta(seconds=max(GROUP_SECONDS, 2 * (options.watchdog_seconds or 0)))
    store.set_timeout(longest)
    dist.init_process_group("nccl" if _on_cuda(options) else "gloo", store=store, rank=rank.rank,
                            world_size=rank.world, timeout=longest)


def require_equal(config: Config) -> None:
    """Ends all ranks unless they have the same config and code and see the same folder `run`. Collective."""
    if world_size() == 1:
        return
    everyone = gather((socket.gethostname(), code_version(), config.tree))
    first, code, tree = everyone[0]
    for rank, (host, other_code, other_tree) in enumerate(everyone):
        changed = differences(tree, other_tree)
        if changed:
            exit_all_ranks(f"rank {rank} on {host} was given another config than rank 0 on {first}: "
                           f"{'; '.join(changed[:5])}. Start every node with the same command")
        if other_code != code:
            exit_all_ranks(f"rank {rank} on {host} runs {other_code}, rank 0 on {first} {code}. Install the same on "
                           "every node")
    _require_shared(Path(config.run))


def code_version() -> str:
    """Versions, and a hash of all source, which tells two checkouts of one version apart."""
    root = Path(__file__).parents[2]
    paths = {path for folder in (root, *(slot.folder for slot in SLOTS.values())) for path in folder.rglob("*.py")}
    files = sorted(hashlib.sha256(path.name.encode() + path.read_bytes()).digest() for path in paths)
    source = hashlib.sha256(b"".join(files)).hexdigest()[:12]
    return f"Aurora {VERSION} (source {source}) with torch {torch.__version__}"


def _require_shared(run: Path) -> None:
    token = gather(secrets.token_hex(8))[0]
    mark = run / f".shared-{token}"
    on_rank_zero(partial(run.mkdir, parents=True, exist_ok=True))
    on_rank_zero(mark.touch)
    seen = gather((mark.exists(), socket.gethostname()))
    if rank_zero():
        mark.unlink()
    blind = sorted({host for there, host in seen if not there})
    exit_all_ranks(f"run={run} is not one folder: {', '.join(blind)} does not see what rank 0 on {seen[0][1]} writes "
                 "there. All nodes need it on a shared file system" if blind else None)


# ---- devices of this machine -----------------------------------------------------------------------------------


def require_layout(options: TrainerOptions, nodes: int = 1) -> int:
    """The processes on so many machines like this one. AuroraError for a layout that is not possible with them."""
    processes = nodes * local_devices(options)
    if options.strategy != "auto":
        check_processes(options, processes)
    return processes


def require_free_port() -> None:
    """AuroraError for a MASTER_PORT at which the processes that Lightning is about to start could not meet."""
    port = os.environ.get("MASTER_PORT")
    if port is None or "LOCAL_RANK" in os.environ:  # started by Lightning, which has the port by now
        return
    try:
        if port == "0":
            raise ValueError("processes could not know which one was taken")
        socket.create_server(("", int(port))).close()
    except (OSError, ValueError, OverflowError) as error:
        why = "is in use by another program" if getattr(error, "errno", None) == EADDRINUSE else f"cannot be: {error}"
        raise AuroraError(f"the port MASTER_PORT={port} {why}; give a free one, or unset MASTER_PORT") from error


def check_processes(options: TrainerOptions, processes: int) -> None:
    """AuroraError when so many processes cannot be divided as the options say."""
    for key, size in (("sequence_parallel", options.sequence_parallel), ("shard_size", options.shard_size or 1)):
        if processes % size:
            raise AuroraError(f"trainer.{key} is {size}, which does not divide the {processes} processes")


def local_devices(options: TrainerOptions) -> int:
    """Processes that the options ask for on this machine. AuroraError when it does not have what they ask for."""
    devices, available = options.devices, torch.cuda.device_count()
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if not {"gpu": cuda or mps, "cuda": cuda, "mps": mps}.get(options.accelerator, True):
        raise AuroraError(f"trainer.accelerator is {options.accelerator}, and torch finds no such device on this "
                          "machine; trainer.accelerator=cpu trains without one")
    if isinstance(devices, list):
        if options.accelerator == "cpu" or not (cuda or mps):
            raise AuroraError(f"trainer.devices {devices} is a list of GPUs; on a CPU it is a number of processes")
        count, last = len(devices), max(devices, default=0)
    elif isinstance(devices, int) and devices > 0:
        count, last = devices, devices - 1
    elif devices in ("auto", -1, "-1"):
        count = available if options.accelerator != "cpu" and cuda else 1
        last = count - 1
    else:
        raise AuroraError(f"trainer.devices {devices!r} is unknown; expected a number, a list of numbers or auto")
    if options.accelerator in ("gpu", "cuda") and cuda and last >= available:
        raise AuroraError(f"trainer.devices is {devices}, and this machine has {available} GPUs")
    return count


def _on_cuda(options: TrainerOptions) -> bool:
    return options.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def _set_torchrun_variables(rank: Rank) -> None:
    """The variables that torchrun sets, which Lightning and torch read, also after srun."""
    variables = {"RANK": rank.rank, "WORLD_SIZE": rank.world, "LOCAL_RANK": rank.local,
                 "LOCAL_WORLD_SIZE": rank.per_node, "GROUP_RANK": rank.rank // rank.per_node}
    if rank.launcher == "srun":
        variables |= {"MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]),
                      # jobs that share a node need ports of their own
                      "MASTER_PORT": 20_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000}
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))


def _give_up(why: str) -> None:
    sys.stderr.write(f"aurora: error: {why}\n")
    sys.stderr.flush()
    os._exit(BAD_INPUT)


def _why_alone(rank: Rank, options: TrainerOptions, error: str) -> str:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if rank.rank == 0 and "EADDRINUSE" in error:
        return f"the port of {where} is in use by another program; give a free one as MASTER_PORT"
    seconds = f"within {options.rendezvous_seconds:g} s (trainer.rendezvous_seconds)"
    if rank.rank == 0:
        return f"not all {rank.world} processes came to {where} {seconds}: {' '.join(error.split())}"
    return (f"rank {rank.rank} on {socket.gethostname()} did not reach the first process at {where} {seconds}; is it "
            f"started, is its name known here, and does a firewall leave the port open? "
            f"({' '.join(error.split())[:300]})")
