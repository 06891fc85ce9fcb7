"""Who trains together: what a launcher says of this process, and how the processes meet.

torchrun, srun and Ray start the processes and tell each its place. Without them one process trains, or Lightning
starts `trainer.devices` of them on this machine.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.rendezvous import rendezvous

import aurora
from aurora.errors import AuroraError
from aurora.registry import SLOTS
from aurora.training.folder import differences
from aurora.training.parallel import BAD_INPUT, agreed, end_together, gather, world_size
from aurora.training.recipe import TrainerOptions

GROUP_SECONDS = 1800.0  # that a collective may take at least; the watchdog is there before


class Place(NamedTuple):
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


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What torchrun, srun or Ray say in the environment; None when nothing has started this process with others.

    AuroraError when they say half of it.
    """
    if "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing:
            raise AuroraError(f"RANK is set and {', '.join(missing)} not; torchrun sets all of them, and without RANK "
                              "one process trains")
        rank, world, local, per_node = (int(environment[name]) for name in names[:4])
        return _checked(rank, world, local, per_node, "torchrun")
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        world, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
        return _checked(int(environment["SLURM_PROCID"]), world, int(environment["SLURM_LOCALID"]), world // nodes,
                        "srun")
    return None


def _checked(rank: int, world: int, local: int, per_node: int, launcher: str) -> Place:
    if world % per_node or local >= per_node:
        raise AuroraError(f"{launcher} started {world} processes, and {per_node} of them on this node; every node must "
                          "have the same number")
    return Place(rank, world, local, per_node, launcher)


def refuse_restart(config: Mapping[str, Any], *, launched: bool) -> None:
    """AuroraError for restart=true where the command is started again by itself."""
    if config.get("restart", False) and (launched or "SLURM_JOB_ID" in os.environ):
        raise AuroraError("restart=true forgets what the run has at every start, and a launcher or SLURM starts a "
                          "command again when something is lost, which would lose the rest. Remove "
                          f"{config['run']}/STAGE, or give another run=")


def fitted(options: TrainerOptions, place: Place | None) -> TrainerOptions:
    """The options with the launcher's number of processes. AuroraError when this machine or the options say another."""
    if place is None:
        return options
    if options.devices not in (1, "auto", place.per_node):
        raise AuroraError(f"trainer.devices is {options.devices!r}, but {place.launcher} started {place.per_node} "
                          "processes on this node; leave trainer.devices out, or make them equal")
    gpus = torch.cuda.device_count() if _on_cuda(options) else place.per_node
    if gpus < place.per_node:
        raise AuroraError(f"{place.launcher} started {place.per_node} processes on this node, which sees {gpus} GPUs; "
                          "one process per GPU is right, and each process must see all GPUs of its node")
    return replace(options, devices=place.per_node)


def cluster(place: Place | None) -> ClusterEnvironment:
    """What Lightning is told: the launcher's word, and nothing that it would make of SLURM's variables by itself."""
    return LightningEnvironment() if place is None else TorchElasticEnvironment()


def join(place: Place, options: TrainerOptions) -> None:
    """Meets the other processes, unless the launcher has seen to that as Ray does.

    AuroraError when that takes longer than `trainer.rendezvous_seconds`.
    """
    _as_torchrun_says(place)
    rank_zero_only.rank = place.rank
    if place.world == 1 or dist.is_initialized():
        return
    if _on_cuda(options):
        torch.cuda.set_device(place.local)
    patience = timedelta(seconds=options.rendezvous_seconds)
    # a stranger that listens there but does not answer is waited for without end
    deadline = threading.Timer(1.5 * options.rendezvous_seconds, _give_up, [_why_alone(place, options, "no answer")])
    deadline.daemon = True
    deadline.start()
    try:
        store = next(rendezvous("env://", place.rank, place.world, timeout=patience))[0]
    except (RuntimeError, ValueError) as error:
        raise AuroraError(_why_alone(place, options, str(error))) from error
    finally:
        deadline.cancel()
    if place.nodes == 1:
        # torchrun by itself starts a lost process again beside the store in which the attempt before has left its words
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
    # all are there now; from here on it is the watchdog who says that one hangs
    longest = timedelta(seconds=max(GROUP_SECONDS, 2 * (options.watchdog_seconds or 0)))
    store.set_timeout(longest)
    dist.init_process_group("nccl" if _on_cuda(options) else "gloo", store=store, rank=place.rank,
                            world_size=place.world, timeout=longest)


def require_equal(config: Mapping[str, Any]) -> None:
    """Ends all ranks unless they were given the same config and code and see the same folder `run`. Collective."""
    if world_size() == 1:
        return
    everyone = [Start(*told) for told in gather((socket.gethostname(), code_version(), dict(config)))]
    end_together(next(filter(None, (_unlike(everyone[0], rank, start) for rank, start in enumerate(everyone))), None))
    _require_shared(Path(config["run"]))


class Start(NamedTuple):
    """What a rank starts with."""

    host: str
    code: str
    config: dict[str, Any]


def _unlike(first: Start, rank: int, start: Start) -> str | None:
    who = f"rank {rank} on {start.host}"
    changed = differences(first.config, start.config)
    if changed:
        return (f"{who} was given another config than rank 0 on {first.host}: {'; '.join(changed[:5])}. Start every "
                "node with the same command")
    if start.code != first.code:
        return f"{who} runs {start.code}, rank 0 on {first.host} {first.code}. Install the same on every node"
    return None


def code_version() -> str:
    """Versions, and a hash of all source, which tells two checkouts of one version apart."""
    root = Path(aurora.__file__).parent
    paths = {path for folder in (root, *(slot.folder for slot in SLOTS.values())) for path in folder.rglob("*.py")}
    files = sorted(hashlib.sha256(path.name.encode() + path.read_bytes()).digest() for path in paths)
    source = hashlib.sha256(b"".join(files)).hexdigest()[:12]
    return f"Aurora {aurora.__version__} (source {source}) with torch {torch.__version__}"


def _require_shared(run: Path) -> None:
    token = gather(secrets.token_hex(8))[0]
    mark = run / f".shared-{token}"
    first = dist.get_rank() == 0
    agreed(lambda: _touch(mark) if first else None)
    seen = gather((mark.exists(), socket.gethostname()))
    if first:
        mark.unlink()
    blind = sorted({host for there, host in seen if not there})
    end_together(f"run={run} is not one folder: {', '.join(blind)} does not see what rank 0 on {seen[0][1]} writes "
                 "there. All nodes need it on a shared file system" if blind else None)


def _touch(mark: Path) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _on_cuda(options: TrainerOptions) -> bool:
    return options.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def _as_torchrun_says(place: Place) -> None:
    """srun's variables in torchrun's words, which Lightning and torch read."""
    told = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local,
            "LOCAL_WORLD_SIZE": place.per_node, "GROUP_RANK": place.rank // place.per_node}
    if place.launcher == "srun":
        told |= {"MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]),
                 # jobs that share a node need ports of their own
                 "MASTER_PORT": 20_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000}
    for name, value in told.items():
        os.environ.setdefault(name, str(value))


def _give_up(why: str) -> None:
    sys.stderr.write(f"aurora: error: {why}\n")
    sys.stderr.flush()
    os._exit(BAD_INPUT)


def _why_alone(place: Place, options: TrainerOptions, error: str) -> str:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if place.rank == 0 and "EADDRINUSE" in error:
        return f"the port of {where} is in use by another program; give a free one as MASTER_PORT"
    seconds = f"within {options.rendezvous_seconds:g} s (trainer.rendezvous_seconds)"
    if place.rank == 0:
        return f"not all {place.world} processes came to {where} {seconds}: {' '.join(error.split())}"
    return (f"rank {place.rank} on {socket.gethostname()} did not reach the first process at {where} {seconds}; is it "
            f"started, is its name known here, and does a firewall leave the port open? "
            f"({' '.join(error.split())[:300]})")
