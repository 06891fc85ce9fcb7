"""The machine: what it is, what it can do at most, and how much of it other processes used during a measurement."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora import __version__
from components.kernels import _native
from components.kernels._dense import onednn
from components.kernels.linear import linear
from tools.bench.timing import Work

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
    """The processor's name, with family and model, since virtual machines call all of a maker's by one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    known = {"cpu family", "model"} <= fields.keys()
    numbers = f", family {fields['cpu family']} model {fields['model']}" if known else ""
    return f"{fields['model name']}{numbers} ({_native.instruction_set().replace('_', ' ')})"


DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float64")}
CUBE = (3072, 3072, 3072)
MOST_READ = 2**30
"""Bytes whose reading is timed; works that read less are held to memory of their size, caches included."""
STREAMS = (1, 2, 4, 8)
"""In how many places at once each thread reads: how many memory serves best differs from processor to processor."""


class Cost(NamedTuple):
    """What one run of a work cannot do without."""

    flops: float
    bytes: float
    dtype: str = "float32"  # of the matrix products: float32 | bfloat16
    product: tuple[int, int, int] = CUBE  # rows, inputs and outputs of the largest one


class Ceilings(NamedTuple):
    """The machine's limits in one round, all threads at work."""

    flops: float  # per second in matrix products
    read: float  # bytes per second
    dtype: str = "float32"

    def limit(self, cost: Cost) -> float:
        """Seconds that the work takes at least."""
        return max(cost.flops / self.flops, cost.bytes / self.read)


class Limit(NamedTuple):
    """One way to reach a limit of the machine, which takes turns with the contestants."""

    name: str
    reads: bool  # bytes, or else operations
    amount: float  # of one run
    work: Work


def limits(cost: Cost, device: str, threads: int, *, quick: bool = False, memory: Sequence[Tensor] = ()
           ) -> list[Limit]:
    """Every way that is known here to multiply matrices of the size and dtype of a work, and to read its bytes: those
    of `memory` itself where it is given, since where memory lies decides how fast it is read."""
    rows, inputs, outputs = (min(size, 256) for size in cost.product) if quick else cost.product
    found = []
    # what is stored in bfloat16 may be widened and multiplied in float32
    for dtype in dict.fromkeys((cost.dtype, "float32")):
        x, weight = (torch.randn(count, inputs, device=device).to(DTYPES[dtype]) for count in (rows, outputs))
        for library, product in _PRODUCTS.items():
            work = torch.inference_mode()(partial(product, x, weight))
            if library == "torch" or (not device.startswith("cuda") and _runs(work)):
                found.append(Limit(f"limit: {dtype} products, {library}", False, 2 * rows * inputs * outputs, work))
    count = int(min(max(cost.bytes, 2**16), 2**20 if quick else MOST_READ)) // 64
    reader = None if device.startswith("cuda") else _reader()
    if not memory or reader is None:
        memory = [torch.ones(count * 16, device=device)]
        found.append(Limit("limit: reading, torch", True, memory[0].nbytes, memory[0].sum))
    if reader is not None:
        found += [Limit(f"limit: reading, {streams} streams", True, sum(tensor.nbytes for tensor in memory),
                        partial(_read, reader, memory, streams, threads)) for streams in STREAMS]
    return found


def ceilings(limits: Sequence[Limit], seconds: Mapping[str, Sequence[float]], dtype: str) -> list[Ceilings]:
    """The limits in each round, by the fastest way to each in that round."""
    rates = {reads: [[limit.amount / taken for taken in seconds[limit.name]] for limit in limits
                     if limit.reads is reads] for reads in (False, True)}
    return [Ceilings(flops, read, dtype) for flops, read in zip(
        map(max, zip(*rates[False], strict=True)), map(max, zip(*rates[True], strict=True)), strict=True)]


_PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch": F.linear, "onednn": onednn, "aurora": linear}


def _runs(work: Work) -> bool:
    """Whether a library multiplies this dtype on this processor."""
    try:
        work()
    except RuntimeError:
        return False
    return True


def _read(reader: ctypes.CDLL, memory: Sequence[Tensor], streams: int, threads: int) -> None:
    for tensor in memory:
        reader.read_lines(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes // 64),
                          ctypes.c_int64(streams), ctypes.c_int(threads))


@cache
def _reader() -> ctypes.CDLL | None:
    """The compiled `read.cpp`; None where there is no compiler."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "read.so"
        try:
            _native._compile(Path(__file__).with_name("read.cpp"), built, _native.instruction_set(),
                             _native._openmp_runtime())
        except _native.NativeUnavailable:
            return None
        return ctypes.CDLL(str(built))


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
