"""A batch is an optimizer step: what a data module's loaders yield, and where a resumed run goes on reading."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.distributed as dist

from aurora.errors import AuroraError
from aurora.types import PackedBatch, Position

START: Position = (0, 0, 0)


class Step:
    """The rows of one optimizer step of this rank, fetched while they are iterated over, once.

    `samples`, `tokens` and `frames` count what has been read so far: all of the step after its last row.
    """

    def __init__(self, rows: Iterator[PackedBatch]) -> None:
        self._rows = rows
        self.samples = self.tokens = self.frames = 0

    def __iter__(self) -> Iterator[PackedBatch]:
        for row in self._rows:
            self.samples += row.samples
            self.tokens += len(row.tokens)
            self.frames += sum(len(group.pixels) for group in row.frames)
            yield row


class StepLoader:
    """Iterates over the optimizer steps of a rank; its state is the position behind the last step whose rows were read.

    Rows are read while their step runs, so asking for a step reads nothing. `len` is that of one pass, which begins
    where a loaded state says, or else at its first step. The next pass reads the epochs that follow, or with `repeat`
    the same ones.
    """

    def __init__(self, rows: Callable[..., Iterator[PackedBatch]], *, steps: int, epochs: int, identity: str,
                 repeat: bool = False) -> None:
        """`rows(position, steps=)` is `DataModule.rows` of one rank; `steps` and `epochs` are those of a pass;
        `identity` is what a position is a position in."""
        self._rows, self._steps, self._epochs = rows, steps, epochs
        self._identity, self._repeat = identity, repeat
        self._position, self._done, self._passes = START, 0, 0
        self._before = 0  # steps of the passes before
        self._resumed = False

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Step]:
        if not self._resumed or self._done == self._steps:
            self._before += self._done
            self._position, self._done = (0 if self._repeat else self._passes * self._epochs, 0, 0), 0
            self._passes += 1
        self._resumed = False
        rows = self._rows(self._position, steps=self._steps - self._done)
        for _ in range(self._done, self._steps):
            yield Step(self._step(rows))

    @property
    def taken(self) -> int:
        """Steps whose rows were read, over all passes."""
        return self._before + self._done

    def state_dict(self) -> dict[str, Any]:
        """JSON; the same on every rank."""
        return {"position": list(self._position), "step": self._done, "before": self._before, "passes": self._passes,
                "data": self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on from a state. AuroraError when it is of other data."""
        if state.get("data") != self._identity:
            raise AuroraError("data: the checkpoint's position belongs to another plan (other shards, mixture, seed, "
                              "row budgets, sampling, prompt or keep ratio); start a new run or restore those options")
        epoch, window, pack = state["position"]
        self._position, self._done = (epoch, window, pack), state["step"]
        self._before, self._passes = state["before"], state["passes"]
        self._resumed = True

    def _step(self, rows: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
        for row in rows:
            yield row
            if row.closes_step:
                self._position, self._done = row.position, self._done + 1
                return
        raise AuroraError(f"the data ended after step {self._done} of {self._steps}")


def rank_and_world(trainer: Any) -> tuple[int, int]:
    """Which share of the rows this process reads, of how many: by the trainer, torch.distributed or the launcher."""
    if trainer is not None:
        # ranks that read one row together count as one
        share = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return int(share["rank"]), int(share["num_replicas"])
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
