import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import torch

from aurora.errors import AuroraError
from aurora.interfaces.data import Executor, R, T
from aurora.options import PositiveInt
from aurora.registry import EXECUTOR


@EXECUTOR.register
class ProcessExecutor(Executor):
    """Processes of this machine: `workers` of them, by default one per core that we may use."""

    def __init__(self, *, workers: PositiveInt | None = None) -> None:
        self._workers = workers or cores()

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        tasks = list(tasks)
        if not tasks:
            return
        pool = ProcessPoolExecutor(min(self._workers, len(tasks)), _context(work), _begin)
        # There is no public way to learn how one ended; they can still be asked when the pool has.
        processes: Mapping[int, BaseProcess] = getattr(pool, "_processes", {})
        try:
            for done in as_completed([pool.submit(work, task) for task in tasks]):
                yield done.result()
        except BrokenProcessPool as error:
            pool.shutdown(wait=True)
            raise AuroraError(f"executor 'process': a worker ended with {cause_of_death(processes)}. Run again: it "
                              "goes on where it was") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cause_of_death(processes: Mapping[int, BaseProcess]) -> str:
    """What the first to die of a broken pool's processes, which have all ended, died of."""
    codes = {process.exitcode or 0 for process in processes.values()} - {0}
    # The pool ends the others by SIGTERM.
    code = next(iter(codes - {-signal.SIGTERM}), -signal.SIGTERM)
    if code == -signal.SIGKILL:
        return "SIGKILL, perhaps because memory ran out; fewer workers need less"
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def _context(work: Callable[..., object]) -> BaseContext:
    """Workers are forked off a process that has imported what they need and nothing else: this one may hold threads,
    which must not be forked, and importing everything once per worker takes a second on each core."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", work.__module__])
    return context


def _begin() -> None:
    torch.set_num_threads(1)  # a worker has one core
    # ^C reaches every process of a terminal; a worker just ends, and the parent says so once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
