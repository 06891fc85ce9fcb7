"""What every result says of where it was made: versions, the code's revision, and the machine."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from aurora.version import VERSION

PACKAGES = ("torch", "transformers", "torchmetrics", "numpy", "av", "decord", "torchcodec", "flash-linear-attention",
            "pycocoevalcap", "lmms-eval")
"""Packages that a score may depend on; those that are not installed are left out."""
_ROOT = Path(__file__).parents[2]


def facts(device: str | torch.device = "cpu") -> dict[str, dict[str, Any]]:
    """`versions` and `hardware`, for a result. They hold no times, so that on one machine they stay the same."""
    return {"versions": versions(), "hardware": hardware(torch.device(device))}


def versions() -> dict[str, str]:
    """Of Aurora, Python and the packages that are installed; in a clone the commit too."""
    found = {"aurora": VERSION, "python": platform.python_version()}
    if revision := _revision():
        found["revision"] = revision
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and the device that a model runs on; sizes in bytes."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "device_memory_bytes": properties.total_memory,
                  "cuda": torch.version.cuda or torch.version.hip}
    return found


def describe(hardware: Mapping[str, Any]) -> str:
    """The hardware of a result in a few words, such as `NVIDIA H200` or `Xeon, 2 cores`."""
    device = hardware.get("device", "cpu")
    if device not in ("cpu", None):
        return str(device)
    named = [str(hardware["cpu"])] if hardware.get("cpu") else []
    return ", ".join([*named, f"{hardware['cores']} cores"] if hardware.get("cores") else named) or "CPU"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows, and systems without these names
        return None


def _revision() -> str | None:
    """The commit of the clone that this code runs from, with `+changes` when files differ from it."""
    if not (_ROOT / ".git").exists():  # an installed package may lie inside of somebody else's clone
        return None
    try:
        commit, changed = (subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=20,
                                          check=True).stdout.strip()
                           for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")
