"""The contracts of the slots that data comes through. This file knows no implementation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from aurora.errors import AuroraError
from aurora.options import require_number
from aurora.steps import StepLoader, rank_and_world
from aurora.types import PackedBatch, Position

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are read: `fps` per second, or `frames` spread evenly, the last one included.

    Exactly one of the two is given; `max_frames` caps `fps` by spreading that many evenly instead. `start` and `stop`
    are seconds after the first frame: only what is shown in between is sampled, up to the end where `stop` lies behind.
    """

    fps: float | None = None
    frames: int | None = None
    max_frames: int | None = None
    start: float = 0.0
    stop: float | None = None

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if given is not None:
                require_number(f"sampling: {name}", given)
        if (self.fps is None) == (self.frames is None):
            raise AuroraError(f"sampling: give exactly one of fps ({self.fps}) and frames ({self.frames})")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise AuroraError(f"sampling: fps {self.fps} is outside (0, 1000]")
        if self.frames is not None and self.frames < 1:
            raise AuroraError(f"sampling: frames {self.frames} is less than 1")
        if self.max_frames is not None and (self.fps is None or self.max_frames < 1):
            raise AuroraError(f"sampling: max_frames {self.max_frames} caps fps at 1 frame or more; "
                              "`frames` already is a number of frames")
        if not 0 <= self.start < (math.inf if self.stop is None else self.stop):
            raise AuroraError(f"sampling: nothing lies between start {self.start} and stop {self.stop}; both are "
                              "seconds after the first frame")


class VideoReader(ABC):
    """Reads chosen frames of a video file in one pass, in time order."""

    @abstractmethod
    def read(self, source: str | bytes, sampling: Sampling) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds after the first frame, [H, W, 3] uint8) of the frame shown at each sampled moment, streamed.

        `source` is a path or the bytes of a file. Frames have the size of the video and stand upright. AuroraError for
        anything that holds no readable video, or nothing in the range, and for a file that takes too long.
        """

    @abstractmethod
    def times(self, source: str | bytes, sampling: Sampling) -> list[float]:
        """The moments in seconds that `read` will sample; their number is the number of frames."""

    def duration(self, source: str | bytes) -> float | None:
        """Seconds from the beginning of the first frame to the end of the last one; None where that is not known."""
        return None


class DataModule(ABC):
    """A source of packed rows for training; a subclass is a LightningDataModule as well, and names this class first.

    The order of samples depends neither on the number of ranks nor on that of loader workers. Every rank is given
    the same number of rows in every optimizer step. The constructor may ask for the facts that other parts know:
    `tokenizer`, `prompt`, `layout` (VisualLayout) and `reader`.
    """

    trainer: Any  # Lightning's, None outside of it
    held_out: "Mapping[str, DataModule]" = MappingProxyType({})
    """What is validated on, by name: each is read from its beginning to its end in every validation."""

    @abstractmethod
    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        """The rows of one rank in `steps` optimizer steps from a position on, epoch after epoch, lazily.

        The last row of a step has `closes_step`, and the position behind it. `rank` and `world` count the processes
        that read rows of their own.
        """

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""

    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch() * self.epochs

    @property
    def epochs(self) -> int:
        """Epochs of the whole training; a second pass over the data starts with the epoch behind them."""
        return 1

    def identity(self) -> str:
        """What a position is a position in: a checkpoint of another one is refused."""
        return ""

    def counts(self) -> dict[str, int]:
        """What this rank has counted so far, such as `bad_samples` and `worker_deaths`: columns of the step metrics."""
        return {}

    def samples(self) -> int | None:
        """Samples of the whole training; None where that is not known."""
        return None

    def fill(self) -> tuple[float, float] | None:
        """Shares of the rows' tokens and frames that are used; None where that is not known."""
        return None

    def prepare_data(self) -> None:
        """Plans once per machine before training starts, so that what is wrong with the data is reported then."""
        self.total_steps()
        for data in self.held_out.values():
            data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Plans in every process. An override, also of `prepare_data`, calls `super()` for what is held out."""
        self.total_steps()
        for data in self.held_out.values():
            data.setup(stage)

    def train_dataloader(self) -> StepLoader:
        """The optimizer steps of this rank. AuroraError for a trainer that would begin with the first ones again."""
        if getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0):
            raise AuroraError("Trainer(reload_dataloaders_every_n_epochs=) would read the first epoch again and again; "
                              "leave it out: the loader goes on with the next epoch by itself")
        return self._step_loader(self.trainer, repeat=getattr(self.trainer, "overfit_batches", 0) > 0)

    def val_dataloader(self) -> list[StepLoader]:
        """Those of what is held out, one loader each; every pass is the same."""
        return [data._step_loader(self.trainer, repeat=True) for data in self.held_out.values()]

    def _step_loader(self, trainer: Any, *, repeat: bool) -> StepLoader:
        rank, world = rank_and_world(trainer)
        return StepLoader(partial(self.rows, rank=rank, world=world), steps=self.total_steps(), epochs=self.epochs,
                          identity=self.identity(), repeat=repeat)


Entry = Mapping[str, Any]
"""What a source says of one sample before any medium is read: JSON that can be written down and read back."""


class Source(ABC):
    """Reads a dataset in the layout of its makers as samples. Options are paths below `folder` and what to ask.

    The constructor is given `folder`, the dataset's own.
    """

    @abstractmethod
    def annotations(self) -> Sequence[Path]:
        """The files that `entries` reads: when one of them changes, the entries may be others."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every sample in the order of the annotations, streamed; no medium is opened.

        An entry that makes no sense is yielded as it is: `sample` raises with the reason, and it is counted.
        AuroraError when the rest of a file cannot be read, after what stands before it.
        """

    @abstractmethod
    def size(self, entry: Entry) -> int:
        """About how many bytes the media of an entry have; 0 for what is not there."""

    @abstractmethod
    def sample(self, entry: Entry, key: str) -> Any:
        """The `ShardSample` (datamodules.shards.format) of an entry under a key; the same for the same arguments.

        Media stand under the extension of what they are (jpg, gif, mp4, avi, …), whatever their files are called.
        BadSample with a reason and a detail where it cannot be used.
        """


class Executor(ABC):
    """Runs independent tasks somewhere. What they write depends neither on who runs them nor on the order."""

    @abstractmethod
    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """What `work` gives for every task, as it comes. `work` is a function of a module, tasks can be pickled.

        A task that raises ends the run with its error once those that are running have ended.
        """


class ShellTask(ABC):
    """A task that can also run from a shell on another machine, and that leaves its result in a file."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The arguments of `aurora` that do it."""

    @abstractmethod
    def result(self) -> Any | None:
        """The result, whoever did it; None while it is not done."""
