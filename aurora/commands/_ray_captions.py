"""`aurora caption-many --ray`: input shards on a pool of actors, by Ray Data."""

import json
import logging
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from aurora.errors import AuroraError
from aurora.inference.captions import CaptionTask, Outcome, caption_shard


class Captioner:
    """An actor: it loads the model with its first shard, and keeps it."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """The outcome of every task as JSON; tasks are pickled, since Arrow has no column of them."""
        done = [caption_shard(pickle.loads(task)) for task in batch["task"]]
        return {"outcome": [json.dumps(outcome) for outcome in done]}


def caption_on_ray(tasks: Sequence[CaptionTask], *, actors: int, gpu: bool) -> Iterator[Outcome]:
    """What becomes of every task, as it comes. A lost actor is started again, and its shard too."""
    # Ray says on standard output that it has lost a process; that is for the answers
    with redirect_stdout(sys.stderr):
        yield from _outcomes(tasks, actors, int(gpu))


def _outcomes(tasks: Sequence[CaptionTask], actors: int, gpus: int) -> Iterator[Outcome]:
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AuroraError(f"--ray: no cluster can be reached: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        data = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
        rows = data.map_batches(Captioner, batch_size=1, batch_format="numpy", num_cpus=1, num_gpus=gpus,
                                compute=ActorPoolStrategy(min_size=1, max_size=actors))
        for row in rows.iter_rows():
            yield Outcome(*json.loads(row["outcome"]))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise AuroraError(f"--ray: {cause or str(error).partition(chr(10))[0]} Run again: it goes on where it was"
                          ) from error
    finally:
        if started:
            ray.shutdown()
