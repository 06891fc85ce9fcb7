"""The machine: what it is, what it can do at most, and how much of it other processes used during a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aurora import __version__
from tools.bench.timing import Clock, clock_of

PEERS = {"rwkv": "rwkv", "transformers": "transformers", "fla": "flash-linear-attention",
         "llama_cpp": "llama-cpp-python", "mamba_ssm": "mamba-ssm", "gguf": "gguf"}
"""Distributions by the module that they bring."""
SHOWN = ("torch", "triton", *PEERS.values(), "av", "decord", "torchcodec")


def describe(device: str, command: str) -> dict[str, Any]:
    """The command, when and on what it ran, and the versions of everything that a figure depends on."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "system": platform.platform(),
        "versions": {"aurora": __version__, "python": sys.version.split()[0], **installed_versions()},
    }


def installed_versions() -> dict[str, str]:
    """Versions of the packages that take part."""
    found = {}
    for name in SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def missing(module: str) -> str | None:
    """Why a peer cannot take part: the line that installs it; None when it is there."""
    try:
        version(PEERS[module])
    except PackageNotFoundError:
        return f"not installed: pip install {PEERS[module]}"
    return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


ROUNDS = 7
MEASURED = ("float32", "bfloat16")
DTYPES = {name: getattr(torch, name) for name in (*MEASURED, "float64")}


class Cost(NamedTuple):
    """What one run of a work cannot do without."""

    flops: float
    bytes: float
    dtype: str = "float32"  # of the matrix products: float32 | bfloat16


class Ceilings(NamedTuple):
    """The machine's limits, all threads at work."""

    flops: dict[str, float]  # per second in matrix products, by dtype
    read: float  # bytes per second

    def limit(self, cost: Cost) -> float:
        """Seconds that the work takes at least."""
        return max(cost.flops / self.flops[cost.dtype], cost.bytes / self.read)

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each of two measurements: what the machine can do at most was disturbed in the lower one."""
        return Ceilings({name: max(rate, other.flops[name]) for name, rate in self.flops.items()},
                        max(self.read, other.read))


def measure_ceilings(device: str, *, quick: bool = False) -> Ceilings:
    """The best of several tries of each; `quick` uses small operands, which say less."""
    clock = clock_of(device)
    side, width = (256, 2**20) if quick else (8192, 2**30) if device.startswith("cuda") else (3072, 2**28)
    return Ceilings({name: _product(clock, side, DTYPES[name], device) for name in MEASURED},
                    _reading(clock, width, device))


def _product(clock: Clock, side: int, dtype: torch.dtype, device: str) -> float:
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    return 2 * side**3 / _best(clock, lambda: torch.mm(a, b, out=out))


def _reading(clock: Clock, size: int, device: str) -> float:
    """The faster of two ways to read all of a tensor: a matrix times a vector, and a sum."""
    matrix = torch.ones(size // 4 // 4096, 4096, device=device)
    vector, out = torch.ones(4096, device=device), torch.empty(len(matrix), device=device)
    ways: tuple[Callable[[], Tensor], ...] = (lambda: torch.mv(matrix, vector, out=out), lambda: matrix.sum())
    return matrix.numel() * 4 / min(_best(clock, way) for way in ways)


def _best(clock: Clock, work: Callable[[], Tensor]) -> float:
    clock(work)
    return min(clock(work) for _ in range(ROUNDS))


NOISE = 0.2
"""Cores that others may use before a measurement is doubted."""


class OtherProcesses:
    """From its making on, the CPU time of all processes but ours and those that we started and ended."""

    def __init__(self) -> None:
        self._start = time.monotonic(), _others()

    def cores(self) -> float | None:
        """How many cores others kept busy on average; None where the system does not say."""
        then, before = self._start
        now = _others()
        if before is None or now is None:
            return None
        return max(0.0, (now - before) / max(time.monotonic() - then, 1e-9))


def warning(cores: float | None) -> str | None:
    """What a reader of the figures must know."""
    if cores is None or cores < NOISE:
        return None
    return f"other processes used {cores:.1f} of {os.cpu_count()} cores meanwhile: measure again when they do not"


def _others() -> float | None:
    """CPU seconds since the machine started, without our own."""
    try:
        # user, nice, system, idle, waiting for disks, interrupts of two kinds
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    except OSError:
        return None
    user, nice, system, _, _, hard, soft = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return user + nice + system + hard + soft - sum(used.ru_utime + used.ru_stime for used in own)
