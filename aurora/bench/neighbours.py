"""How much of the processor others used while something was measured."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

NOISE = 0.2
"""Cores that others may use before a measurement is doubted."""


class Neighbours:
    """From its making on, the processor time of all processes but ours and those that we started and ended."""

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
    """Seconds of processor time since the machine started, less ours."""
    try:
        # user, nice, system, idle, waiting for disks, interrupts of two kinds
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    except OSError:
        return None
    user, nice, system, _, _, hard, soft = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return user + nice + system + hard + soft - sum(used.ru_utime + used.ru_stime for used in own)
