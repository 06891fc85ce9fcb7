"""What a worker process does: builds every W-th row of a rank, and says which sample it is at."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from aurora.errors import AuroraError
from aurora.types import PackedBatch

from .rows import BETWEEN, Skipped
from ..shards.format import BadSample
from ..plan.schedule import Position, Turn
from .transfer import send

IDLE = -2  # beside a sample's number in its row: there is no room for another row
END, RENEW = -1, -2  # beside a row's number: no row is left; the memory has grown too much
FREED = struct.Struct("<q")  # what the other side answers when a row was taken: its bytes
_SIGKILL_ON_PARENT_DEATH = 1  # PR_SET_PDEATHSIG
Built = tuple[PackedBatch, list[Skipped]]


class Task(Protocol):
    """What is to be done, copied into every worker."""

    def turns(self, position: Position) -> Iterator[Turn]:
        """The micro-steps of this rank from a position on."""

    def build(self, turn: Turn, given_up: Mapping[int, BadSample], note: Callable[[int], None]) -> Built:
        """The row of a micro-step. `note` is told each sample's place in it before that is decoded."""


@dataclass(frozen=True)
class Care:
    """What workers may take."""

    sample_seconds: float = 600.0  # for one sample
    worker_bytes: int = 4 << 30  # more than it started with, for one worker
    prefetch_rows: int = 2  # built and not yet taken, for one worker
    prefetch_bytes: int = 1 << 30  # of such rows, for all workers; each may have one row whatever its size

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise AuroraError(f"data: {name} {value} must be more than 0")


class Order(NamedTuple):
    """Which rows a worker builds."""

    lane: int
    lanes: int
    number: int  # of the first row behind `position`
    position: Position
    first: int  # the row that it begins with
    given_up: Mapping[int, Mapping[int, BadSample]]  # by row and place: samples that are not tried again


class Desk:
    """What a worker is at, readable by the process that watches over it, even after the worker's death."""

    def __init__(self, context: BaseContext) -> None:
        self._fields = context.RawArray("d", 3)

    def note(self, row: int, sample: int) -> None:
        """The sample's place in its row, BETWEEN or IDLE."""
        self._fields[2] = time.monotonic()
        self._fields[0] = row
        self._fields[1] = sample

    def look(self) -> tuple[int, int, float]:
        """Row, sample, and for how many seconds."""
        return int(self._fields[0]), int(self._fields[1]), time.monotonic() - self._fields[2]


def work(task: Task, order: Order, desk: Desk, line: socket.socket, care: Care, parent: int,
         inherited: Sequence[socket.socket]) -> None:
    """The life of a worker. What goes wrong is sent as text, in the place of the row."""
    settle(parent, inherited)
    number = order.first
    try:
        room, base = _Room(line, care, order.lanes), _private_bytes()
        for number, turn in _mine(task, order):
            desk.note(number, IDLE)
            if not room.wait():
                return
            desk.note(number, BETWEEN)
            built = task.build(turn, order.given_up.get(number, {}), partial(desk.note, number))
            desk.note(number, BETWEEN)
            room.take(send(line, number, built))
            if _private_bytes() - base > care.worker_bytes:
                send(line, RENEW, None)
                return
        send(line, END, None)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits for rows any more
    except AuroraError as error:
        # As text, because an exception that crosses processes arrives with a traceback for a message.
        send(line, number, str(error))
    except Exception:
        send(line, number, f"a worker failed:\n{traceback.format_exc()}")


def _mine(task: Task, order: Order) -> Iterator[tuple[int, Turn]]:
    for number, turn in enumerate(task.turns(order.position), order.number):
        if number % order.lanes == order.lane and number >= order.first:
            yield number, turn


class _Room:
    """How much of what a worker has built was not taken yet."""

    def __init__(self, line: socket.socket, care: Care, lanes: int) -> None:
        self._line, self._rows, self._bytes = line, care.prefetch_rows, care.prefetch_bytes // lanes
        self._sizes: deque[int] = deque()

    def take(self, size: int) -> None:
        """A row was sent."""
        self._sizes.append(size)

    def wait(self) -> bool:
        """Waits until there is room for a row like the last; False when the other side is gone."""
        while self._sizes and (len(self._sizes) >= self._rows or sum(self._sizes) + self._sizes[-1] > self._bytes):
            if len(self._line.recv(FREED.size)) < FREED.size:
                return False
            self._sizes.popleft()
        return True


def settle(parent: int, inherited: Sequence[socket.socket]) -> None:
    """Makes this process one that only its parent ends, and that ends with its parent."""
    for other in inherited:
        other.close()
    # Ctrl-C and a batch system's SIGTERM reach the whole group; the parent, which wants its rows until it has saved,
    # decides when they end.
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


def failed(item: Any) -> str | None:
    """What went wrong, where that came instead of a row."""
    return item if isinstance(item, str) else None
