from collections.abc import Callable, Iterable, Iterator

from aurora.interfaces.data import Executor, R, T
from aurora.registry import EXECUTOR


@EXECUTOR.register
class SerialExecutor(Executor):
    """One task after the other, in this process: what the others are compared with."""

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        return map(work, tasks)
