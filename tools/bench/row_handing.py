"""Ways to hand rows from one process to another: ours, torch's queue, and a ring of shared slots."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from datamodules.loading import transfer
from tools.bench.timing import Work

SLOTS = 2
Shape = tuple[int, ...]
Way = Callable[[int, Shape], Iterator[Tensor]]
"""From how many rows and of which shape to the rows as they arrive."""


def hand_over(way: Way, rows: int, shape: Shape) -> Work:
    """Takes every row and reads a little of each page of it, as a copy to an accelerator would."""
    def work() -> Tensor:
        return torch.stack([pixels.view(-1)[::4096].sum(dtype=torch.int64).double() for pixels in way(rows, shape)])

    return work


def _row(number: int, out: Tensor) -> None:
    """What building a row comes to here: every byte of it is written."""
    out.fill_(number % 251)


def _ours(rows: int, shape: Shape) -> Iterator[Tensor]:
    ours, theirs = socket.socketpair()
    with _sender(_send_ours, theirs, rows, shape), ours:
        theirs.close()
        for _ in range(rows):
            yield transfer.receive(ours)[1]
            ours.send(b"x")


def _send_ours(line: socket.socket, rows: int, shape: Shape) -> None:
    for number in range(rows):
        if number >= SLOTS:
            line.recv(1)
        pixels = torch.empty(shape, dtype=torch.uint8)
        _row(number, pixels)
        transfer.send(line, number, pixels)
    unread = min(rows, SLOTS)
    while unread:
        unread -= len(line.recv(unread))


def _queue(rows: int, shape: Shape) -> Iterator[Tensor]:
    context = torch.multiprocessing.get_context("fork")
    queue, done = context.Queue(SLOTS), context.Event()
    with _sender(_send_queue, queue, done, rows, shape):
        for _ in range(rows):
            yield queue.get()
        done.set()


def _send_queue(queue: Any, done: Any, rows: int, shape: Shape) -> None:
    for number in range(rows):
        pixels = torch.empty(shape, dtype=torch.uint8)
        _row(number, pixels)
        queue.put(pixels)
    done.wait()


def _ring(rows: int, shape: Shape) -> Iterator[Tensor]:
    context = _context()
    memory = torch.zeros((SLOTS, *shape), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    free, full = context.Semaphore(SLOTS), context.Semaphore(0)
    with _sender(_send_ring, memory, free, full, rows):
        for number in range(rows):
            full.acquire()
            pixels = memory[number % SLOTS].clone()
            free.release()
            yield pixels


def _send_ring(memory: Tensor, free: Any, full: Any, rows: int) -> None:
    for number in range(rows):
        pixels = torch.empty(memory.shape[1:], dtype=torch.uint8)
        _row(number, pixels)
        free.acquire()
        memory[number % SLOTS] = pixels
        full.release()


@contextmanager
def _sender(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    process = _context().Process(target=_alone, args=(work, *arguments), daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.kill()


def _alone(work: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    work(*arguments)


def _context() -> ForkContext:
    return multiprocessing.get_context("fork")


WAYS: dict[str, Way] = {"aurora: memory of its own for every row": _ours,
                        "torch.multiprocessing.Queue, file descriptors": _queue,
                        "a ring of shared slots, copied out": _ring}
