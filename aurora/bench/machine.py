"""Where and with what a measurement was made."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from aurora import __version__

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
