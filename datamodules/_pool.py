"""What becomes of the processes of a pool."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess


def processes_of(pool: ProcessPoolExecutor) -> Mapping[int, BaseProcess]:
    """The processes that a pool starts. They can still be asked when the pool has ended."""
    # There is no public way to learn how one ended.
    found: Mapping[int, BaseProcess] = getattr(pool, "_processes", {})
    return found


def cause_of_death(processes: Mapping[int, BaseProcess]) -> str:
    """What the first to die of a broken pool's processes, which have all ended, died of."""
    codes = {process.exitcode or 0 for process in processes.values()} - {0}
    # The pool ends the others by SIGTERM.
    code = next(iter(codes - {-signal.SIGTERM}), -signal.SIGTERM)
    if code == -signal.SIGKILL:
        return "SIGKILL, perhaps because memory ran out; fewer workers need less"
    return signal.Signals(-code).name if code < 0 else f"status {code}"
