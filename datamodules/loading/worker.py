"""What a worker process does: builds every W-th row of a rank, and reports which sample it is at."""

import ctypes
import gc
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

import torch

from aurora.errors import AuroraError, BadSample

from .rows import BETWEEN, RowTask
from .transfer import send

IDLE = -2  # reported in place of a sample: there is no room for another row
END, RENEW = -1, -2  # sent in place of a row's number: no row is left; the memory has grown too much
TAKEN = b"."  # what the other side answers for every row that it took
_SIGKILL_ON_PARENT_DEATH = 1  # PR_SET_PDEATHSIG


class WorkerLimits(NamedTuple):
    """What workers may take."""

    sample_seconds: float  # for one sample
    worker_bytes: int  # more than it started with, for one worker
    prefetch_rows: int  # built and not yet taken, for one worker
    prefetch_bytes: int  # of such rows, for all workers; each may have one row whatever its size


class Assignment(NamedTuple):
    """Which rows a worker builds: those of its turn, from row `first` on."""

    worker: int
    workers: int
    first: int
    given_up: Mapping[int, Mapping[int, BadSample]]  # by row and place: samples that are not tried again


class Heartbeat:
    """What a worker is at, readable by its supervisor, even after the worker's death."""

    def __init__(self, context: BaseContext) -> None:
        self._fields = context.RawArray("d", 3)

    def beat(self, row: int, sample: int) -> None:
        """Reports the sample's place in its row, BETWEEN or IDLE."""
        self._fields[2] = time.monotonic()
        self._fields[0] = row
        self._fields[1] = sample

    def last(self) -> tuple[int, int, float]:
        """Row, sample, and for how many seconds."""
        return int(self._fields[0]), int(self._fields[1]), time.monotonic() - self._fields[2]


def work(task: RowTask, assignment: Assignment, heartbeat: Heartbeat, line: socket.socket, limits: WorkerLimits,
         parent: int, inherited: Sequence[socket.socket]) -> None:
    """The life of a worker. What goes wrong is sent as text, in the place of the row."""
    settle(parent, inherited)
    number = assignment.first
    try:
        sizes, base, room = deque[int](), _private_bytes(), limits.prefetch_bytes // assignment.workers
        for number, row in task.planned():
            if number % assignment.workers != assignment.worker or number < assignment.first:
                continue
            heartbeat.beat(number, IDLE)
            if not _wait_for_room(line, sizes, limits.prefetch_rows, room):
                return
            heartbeat.beat(number, BETWEEN)
            built = task.builder.row(row, assignment.given_up.get(number, {}), partial(heartbeat.beat, number))
            heartbeat.beat(number, BETWEEN)
            sizes.append(send(line, number, built))
            if _private_bytes() - base > limits.worker_bytes:
                send(line, RENEW, None)
                return
        send(line, END, None)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits for rows any more
    except Exception as error:
        # As text, because an exception that crosses processes arrives with a traceback for a message.
        said = str(error) if isinstance(error, AuroraError) else f"a worker failed:\n{traceback.format_exc()}"
        send(line, number, said)


def _wait_for_room(line: socket.socket, sizes: deque[int], rows: int, room: int) -> bool:
    """Waits until so many rows and bytes hold those that were not taken yet and one more like the last; `sizes` are
    theirs. False when the other side is gone."""
    while sizes and (len(sizes) >= rows or sum(sizes) + sizes[-1] > room):
        if not line.recv(len(TAKEN)):
            return False
        sizes.popleft()
    return True


def settle(parent: int, inherited: Sequence[socket.socket]) -> None:
    """Makes this process one that only its parent ends, and that ends with its parent."""
    for other in inherited:
        other.close()
    # Ctrl-C and a batch system's SIGTERM reach the whole group; the parent wants its rows until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGKILL_ON_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # Collecting garbage would write into what is shared with the parent, and so copy it page by page.
    gc.freeze()
    # Workers decode side by side; more threads each would only fight for the cores.
    torch.set_num_threads(1)


def _private_bytes() -> int:
    """Memory of this process alone, mapped files left out; 0 where the system does not say."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
