import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import ray
from annotated_types import Ge

from aurora.errors import AuroraError
from aurora.interfaces.data import Executor, R, T
from aurora.options import PositiveFloat
from aurora.registry import EXECUTOR


@EXECUTOR.register
class RayExecutor(Executor):
    """One Ray task per task, each on `cpus` cores and `gpus` GPUs; `address` is that of a cluster, by default the one
    that RAY_ADDRESS names, else one is started here. All machines see the same folders under the same paths.
    """

    def __init__(self, *, address: str | None = None, cpus: PositiveFloat = 1.0,
                 gpus: Annotated[float, Ge(0)] = 0.0) -> None:
        self._address, self._cpus, self._gpus = address, cpus, gpus

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        ours = not ray.is_initialized()
        if ours:
            try:
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise AuroraError(f"executor 'ray': no cluster at {self._address}: {error}") from error
        waiting: list[Any] = []
        try:
            remote = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus)(work)
            waiting = [remote.remote(task) for task in tasks]
            while waiting:
                done, waiting = ray.wait(waiting)
                yield from ray.get(done)
        except ray.exceptions.RayError as error:
            for other in waiting:
                ray.cancel(other)
            if isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
                raise error.cause from error
            raise AuroraError(f"executor 'ray': {str(error).partition(chr(10))[0]} Run again: it goes on where it was"
                              ) from error
        finally:
            if ours:
                ray.shutdown()
