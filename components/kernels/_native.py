"""C++ kernels: compiled on first use for this processor, cached, called without the GIL.

A source `csrc/<name>.cpp` exports plain C functions and knows nothing of torch, so it compiles in seconds and works
with every version of torch. The instruction set is chosen here, and sources use the compiler's vector extensions, which
exist for every set; what they need beyond that they guard with the macros of the set (`__AVX512F__`, …). OpenMP's
threads are those of torch: kernels are linked with the runtime that torch has loaded.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from aurora.errors import AuroraError

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
TIMEOUT_SECONDS = 300
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16", "-mavx512vnni")
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "amx": (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    "avx512_bf16": _AVX512_BF16,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "plain": (),
}
"""The compiler's flags of every instruction set, the widest first; `AURORA_CPU` takes one of these names."""

TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
FUNCTIONS: dict[str, dict[str, str]] = {
    "attention": {"attention": "pppp pp llll ii"},
    "linear": {"gemv": "pppp lll iiii", "linear": "ppppp lll lll iiiii"},
    "rwkv6": {"rwkv6_read": "pfpp pppp pppp p liii"},
    "rwkv6_mix": {"rwkv6_norm_shift": "ppp pp ppl pl ppp lfii", "rwkv6_mix_five": "pppl ppp lii",
                  "rwkv6_norm_gate": "ppppp lll fii"},
    "vision": {"gelu_tanh": "p lii", "mean_direction": "p lll p llll ii", "match_pairs": "p ppp llll i",
               "absorb": "ppp ppp ppp lllll ii", "reorder": "ppp p ppp llll"},
    "vit": {"vit_read": "pfpp pp ppp li"},
    "wkv6": {"wkv6_interval": "", "wkv6_shares": "p llll i", "wkv6_forward": "i ppp ppp p llll i ppp",
             "wkv6_backward": "i ppp ppp p llll i ppp ppp ppp"},
    "wkv7": {"wkv7_interval": "", "wkv7_shares": "p llll i", "wkv7_forward": "i pppppp p p llll i pppp",
             "wkv7_backward": "i pppppp p p llll i pppp pppppp p"},
}
"""The argument types of each source's functions, by the letters of TYPES; spaces are for the eye."""


class NativeUnavailable(RuntimeError):
    """There is no compiled kernel here; the message says why."""


@cache
def library(name: str) -> ctypes.CDLL:
    """The compiled `csrc/<name>.cpp`. NativeUnavailable when it cannot be compiled or loaded here."""
    try:
        loaded = _build(name)
    except NativeUnavailable as error:
        log.warning("the compiled kernel %r is not available, a slower form takes its place: %s", name, error)
        raise
    for function, kinds in FUNCTIONS.get(name, {}).items():
        if hasattr(loaded, function):  # some exist only where the instruction set has what they need
            getattr(loaded, function).argtypes = [TYPES[kind] for kind in kinds.replace(" ", "")]
            getattr(loaded, function).restype = ctypes.c_int64  # where anything is given
    return loaded


@cache
def missing(name: str) -> str | None:
    """Why `library(name)` is not available here; None when it is."""
    try:
        library(name)
    except NativeUnavailable as error:
        return str(error)
    return None


def instruction_set() -> str:
    """The widest instruction set of this processor, or a narrower one that AURORA_CPU names; AuroraError if it names
    another."""
    asked = os.environ.get("AURORA_CPU")
    if asked and asked not in here():
        raise AuroraError(f"AURORA_CPU={asked}: this processor has {', '.join(here())}")
    return asked or _widest_set()


def here() -> list[str]:
    """The instruction sets of this processor, the widest first."""
    known = list(INSTRUCTION_SETS)
    return known[known.index(_widest_set()) :]


@cache
def _widest_set() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        if torch.cpu._is_amx_tile_supported():
            return "amx"
        return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    return "avx2" if capability == "AVX2" else "plain"


def serves(name: str, *tensors: Tensor) -> bool:
    """Whether the compiled kernel `name` may take these: float32 or bfloat16 on a CPU, no gradient wanted."""
    first, graded = tensors[0], torch.is_grad_enabled()
    for x in tensors:  # plainly: this is asked dozens of times per chunk of frames
        if x.dtype is not first.dtype or x.stride(-1) != 1 or (graded and x.requires_grad):
            return False
    return unfit(name, first, first) is None


def address(x: Tensor | None) -> int | None:
    """Where a tensor lies."""
    return None if x is None else x.data_ptr()


def altered(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody wants to be there when one of these is called, or stands in for it."""
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)


def unfit(name: str, k: Tensor, v: Tensor) -> str | None:
    """Why a kernel of `csrc/<name>.cpp` cannot take keys and values like these; None when it can."""
    if k.device.type != "cpu":
        return f"takes tensors on cpu, not on {k.device.type}"
    if k.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {str(k.dtype).removeprefix('torch.')}"
    if torch.compiler.is_compiling():
        return "is not for torch.compile"
    reason = missing(name)
    return None if reason is None else f"is not available: {reason}"


def bounds(lengths: Sequence[int]) -> Tensor:
    """Where each sequence starts, and the end: [S + 1] int64."""
    return torch.tensor([0, *accumulate(lengths)])


def cache_folder() -> Path:
    """Where compiled kernels lie: AURORA_CACHE, or the user's cache folder."""
    base = os.environ.get("AURORA_CACHE")
    if base:
        return Path(base) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aurora" / "kernels"


def _build(name: str) -> ctypes.CDLL:
    """Loads what was compiled before; compiles anew where there is nothing, or what there is does not load."""
    source, chosen = SOURCES / f"{name}.cpp", instruction_set()
    runtime = _openmp_runtime()
    key = hashlib.sha256(" ".join((*FLAGS, *INSTRUCTION_SETS[chosen], Path(runtime or "").name)).encode())
    for part in (*sorted(SOURCES.glob("*.h")), source):
        key.update(part.read_bytes())
    file = f"{name}-{platform.machine()}-{chosen}-{key.hexdigest()[:16]}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(cache_folder() / file))
    log.info("compiling %s for %s, once", source.name, chosen)
    built = _writable_folder() / file
    _compile(source, built, chosen, runtime)
    try:
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise NativeUnavailable(f"{built} does not load: {error}") from error


def _writable_folder() -> Path:
    """The cache folder; where that cannot be written, a folder that goes when this process ends."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.warning("compiled kernels cannot be kept, every process compiles them anew: %s; AURORA_CACHE may name a "
                    "folder that can be written", error)
        return _passing_folder()


@cache
def _passing_folder() -> Path:
    # of this process alone: from a folder that others can write, a library of theirs might be loaded
    folder = Path(tempfile.mkdtemp(prefix="aurora-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(source: Path, built: Path, instructions: str, runtime: str | None) -> None:
    """Several processes may do this at once: each writes a file of its own, and the last to finish names it."""
    compiler = _compiler()
    known = list(INSTRUCTION_SETS)
    # the first runtime that has what is needed is linked with; the compiler's own comes last
    shared = ["-Wl,--as-needed", runtime] if runtime else []
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        fresh = Path(folder) / built.name
        for flags in map(INSTRUCTION_SETS.__getitem__, known[known.index(instructions) :]):
            command = [compiler, *FLAGS, *flags, str(source), "-o", str(fresh)]
            failure = _run([*command, "-fopenmp", *shared])
            if "openmp" in failure.lower():  # Apple's clang has none: one thread is better than no kernel
                failure = _run(command)
            if not any(flag in failure for flag in flags):  # else the compiler is older than the processor
                break
        if failure:
            raise NativeUnavailable(f"{compiler} failed on {source.name}: {failure.strip()[-500:]}")
        os.replace(fresh, built)


def _run(command: list[str]) -> str:
    """What a command says if it fails, else nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"


def _openmp_runtime() -> str | None:
    """The file of GNU's OpenMP that this process has loaded. Wheels of torch bring one under a name of its own, and
    a second one would be a second set of threads."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((path for line in lines if "libgomp" in (path := line.rpartition(" ")[2])), None)


def _compiler() -> str:
    for candidate in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if candidate and shutil.which(candidate):
            return candidate
    raise NativeUnavailable("no C++ compiler was found; install g++, or name one with CXX")
