"""Supervised worker processes: a decoder that crashes, hangs or leaks costs one sample, never the run.

A worker that dies, or is killed because a sample takes too long, is replaced at its row. The sample in hand is tried
once more, for it may not be the cause, and then becomes a placeholder: neither order nor content of any row depend on
what happens to workers. All of this goes on whenever a row is asked for; there is no thread.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import torch

from aurora.errors import AuroraError, BadSample

from ..reader._file import decoded_here
from .rows import BETWEEN, Built, RowTask
from .transfer import receive
from .worker import IDLE, RENEW, TAKEN, Assignment, Heartbeat, WorkerLimits, work

LOOK_SECONDS = 0.5
START_SECONDS = 900.0  # to start, to plan a window or to fetch a shard
PATIENCE = 3  # deaths in a row without a sample in hand
SECOND_TRY = 0.25  # of the seconds of a sample, for one that was tried before
_log = logging.getLogger(__name__)


def supervised(task: RowTask, workers: int, limits: WorkerLimits, died: Callable[[], None]) -> Iterator[Built]:
    """The rows of a task in order; worker w of W builds the rows w, w + W, w + 2W, ... `died` is called for each death.

    Workers end with the iteration, or with this process. AuroraError when one fails and no sample is the reason.
    """
    team = [_Worker(number, workers, limits, died) for number in range(workers)]

    def end() -> None:  # they hold nothing that must be put away
        for worker in team:
            worker.stop()

    # multiprocessing would ask daemons to end by SIGTERM at exit, and wait for them
    stop = Finalize(None, end, exitpriority=10)
    try:
        for worker in team:
            worker.start(task, team)
        for number in count():
            worker = team[number % workers]
            _receive(team, task, 0.0)
            while not worker.ready:
                _receive(team, task, LOOK_SECONDS)
            built = worker.take()
            if built is None:
                return
            if built[0].closes_step:
                task = task.behind(number, built[0].position)
            yield built
    finally:
        stop()


def start_method() -> str:
    """How workers start: by fork, which is fast and shares the index, where this process has not decoded video, started
    CUDA or read from a server: a fork of it could not do so too."""
    forks = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    asyn = sys.modules.get("fsspec.asyn")
    reads = asyn is not None and asyn.iothread[0] is not None
    return "fork" if forks and not decoded_here() and not cuda and not reads else "spawn"


def _receive(team: "Sequence[_Worker]", task: RowTask, seconds: float) -> None:
    """Takes in what workers send, for so long if nothing comes; replaces dead ones and kills those that hang."""
    lines = {worker.line: worker for worker in team if not worker.ended}
    for line in wait(list(lines), seconds):
        worker = lines[line]  # type: ignore[index]
        parcel = receive(worker.line)
        if parcel is not None:
            worker.accept(*parcel)
        else:
            worker.examine()
            worker.start(task, team)
    for worker in team:
        worker.check()


class _Worker:
    """One process after the other for the rows `number`, `number + workers`, ..., and what they have sent."""

    def __init__(self, number: int, workers: int, limits: WorkerLimits, died: Callable[[], None]) -> None:
        self.ready: deque[Built | str | None] = deque()  # rows; an error or, after the last one, None in their place
        self.ended = False
        self.line: socket.socket
        self._number, self._workers, self._limits, self._died = number, workers, limits, died
        self._next = number  # the row that is to come
        self._taken = time.monotonic()  # when the last row was taken
        self._suspect: tuple[int, int] | None = None  # the row and the place of the sample at which one died last
        self._given_up: dict[int, dict[int, BadSample]] = {}
        self._deaths = 0
        self._older = 0  # of the ready ones, how many an earlier process built
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self, task: RowTask, team: "Sequence[_Worker]") -> None:
        """Starts a process for what is left of its rows of a task."""
        method = start_method()
        context = multiprocessing.get_context(method)
        self.line, theirs = socket.socketpair()
        self._heartbeat = Heartbeat(context)
        self._heartbeat.beat(self._next, BETWEEN)
        self._hanging = self._grown = False
        # a forked worker would keep these open
        inherited = [worker.line for worker in team if worker._process or worker is self] if method == "fork" else []
        assignment = Assignment(self._number, self._workers, self._next, self._given_up)
        process = context.Process(  # type: ignore[attr-defined]
            target=work, daemon=True,
            args=(task, assignment, self._heartbeat, theirs, self._limits, os.getpid(), inherited))
        with theirs:
            process.start()
        self._process = process

    def accept(self, number: int, item: Any) -> None:
        """Takes what the process sent."""
        if number == RENEW:
            self._grown = True
            return
        self.ready.append(item)
        self._deaths = 0
        self._given_up.pop(self._next, None)
        self._next += self._workers
        self.ended = item is None or isinstance(item, str)

    def take(self) -> Built | None:
        """The next row, whose memory the process may fill again; None after the last one."""
        item, self._taken = self.ready.popleft(), time.monotonic()
        if isinstance(item, str):
            raise AuroraError(item)
        if self._older:
            self._older -= 1
        elif not self.ended:
            try:
                self.line.sendall(TAKEN)
            except (BrokenPipeError, ConnectionResetError):
                _log.debug("data: worker %d has died", self._number)  # found when it is next looked after
        return item

    def check(self) -> None:
        """Kills a process that has been at one thing for too long."""
        row, sample, seconds = self._heartbeat.last()
        most = START_SECONDS if sample == BETWEEN else self._limits.sample_seconds
        if sample == IDLE:  # which it may be for as long as a row of its own waits here
            seconds = 0.0 if self.ready else min(seconds, time.monotonic() - self._taken)
        elif (row, sample) == self._suspect:
            most *= SECOND_TRY
        if seconds > most and not self.ended and not self._hanging:
            self._hanging = True
            assert self._process is not None
            self._process.kill()

    def examine(self) -> None:
        """Finds out what a dead process died of, and gives up the sample in hand if another one died of it before.
        AuroraError when it is not a sample again and again."""
        how, self._older = self.stop(), len(self.ready)
        row, sample, _ = self._heartbeat.last()
        if self._grown:
            _log.info("data: worker %d has grown by more than %d bytes and is renewed", self._number,
                      self._limits.worker_bytes)
            return
        self._died()
        if sample >= 0 and row == self._next:
            bad = (BadSample("hang", f"not decoded after {self._limits.sample_seconds:g} s") if self._hanging
                   else BadSample("crash", f"the worker that decoded it ended with {how}"))
            again, self._suspect = (row, sample) == self._suspect, (row, sample)
            if again:
                self._given_up.setdefault(row, {})[sample] = bad
            _log.warning("data: worker %d is started again%s (%s)", self._number,
                         " without a sample" if again else ", and a sample tried once more", bad.detail)
            return
        self._deaths += 1
        if self._deaths == PATIENCE:
            raise AuroraError(f"data: worker {self._number} of {self._workers} ended {PATIENCE} times in a row without "
                              f"a sample in hand, the last time with {how}; what it wrote to standard error says "
                              "more, data.workers=0 builds rows in the main process")
        _log.warning("data: worker %d %s without a sample in hand and is started again", self._number,
                     "hung" if self._hanging else f"ended with {how}")

    def stop(self) -> str:
        """Ends the process, if it has not ended, and says how it did."""
        if self._process is None:
            return "nothing"
        process, self._process = self._process, None
        # what it was sending is complete or not there at all
        self.line.close()
        process.kill()
        process.join()
        code = process.exitcode or 0
        process.close()
        return signal.Signals(-code).name if code < 0 else f"status {code}"
