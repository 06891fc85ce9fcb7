"""What the data modules share that read folders of which nothing is known beforehand: rows without an end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning

from aurora.errors import AuroraError
from aurora.interfaces import DataModule, Prompt, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.mixture import Mixture, Part, read_mixture
from aurora.types import PackedBatch

from .shards.tar import is_remote
from .loading.loader import BadSamples
from .plan.schedule import Position, check_position, rank_and_world
from ._segments import Segments
from .reader._sampling import check_sampling


class Endless(lightning.LightningDataModule, DataModule):  # type: ignore[misc]
    """Tars of the folders of a mixture below `root`, packed as samples come by: all ranks make the same `max_steps`
    steps of `rows_per_step` rows."""

    def __init__(
        self, *, root: str, mixture: Mapping[str, Any] | Mixture, row_tokens: int, row_frames: int, rows_per_step: int,
        tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None, reader: VideoReader,
        max_steps: int | None, seed: int = 0, workers: int = 0, shuffle: int = 1000,
        fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
        max_bad_rate: float = 0.01, bad_rate_after: int = 200, quarantine: str | None = None,
    ) -> None:
        super().__init__()
        self.told = f"data {type(self).__module__.rpartition('.')[2]!r}"
        if max_steps is None:
            raise AuroraError(f"{self.told}: its rows have no end; max_steps says how many to read: that of the "
                              "stage, and stages.STAGE.validation.max_steps")
        least = {"row_tokens": (row_tokens, 1), "row_frames": (row_frames, 1), "rows_per_step": (rows_per_step, 1),
                 "max_steps": (max_steps, 1), "workers": (workers, 0), "shuffle": (shuffle, 1), "seed": (seed, 0)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise AuroraError(f"{self.told}: {name} {value} must be {smallest} or more")
        self.position: Position = (0, 0, 0)
        self.bad: BadSamples | None = None
        self.folders = self._folders(root, read_mixture("data.mixture", mixture))
        self.rows_per_step, self.steps, self.seed, self.workers, self.shuffle = (
            rows_per_step, max_steps, seed, workers, shuffle)
        self.maker = Segments(tokenizer, prompt, layout, reader, check_sampling(
            Sampling(fps=fps, frames=frames, max_frames=max_frames)), row_tokens, row_frames)
        self._bad = (max_bad_rate, bad_rate_after, None if quarantine is None else Path(quarantine))

    @abstractmethod
    def rows(self, bad: BadSamples, rank: int, world: int) -> Iterator[PackedBatch]:
        """The rows of a rank from `position` on, and into `bad` what was bad among the samples that came by."""

    def train_dataloader(self) -> Iterator[PackedBatch]:
        rank, world = rank_and_world(self.trainer)
        if self.rows_per_step % world:
            raise AuroraError(f"{self.told}: rows_per_step {self.rows_per_step} does not divide by {world} ranks")
        path = self._bad[2]
        if path is not None and world > 1:
            path = path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self.bad = BadSamples(self._bad[0], self._bad[1], path)
        return self.rows(self.bad, rank, world)

    def steps_per_epoch(self) -> int:
        return self.steps

    def total_steps(self) -> int:
        return self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.position = check_position(state_dict.get("position"))

    def _folders(self, root: str, mixture: Mixture) -> dict[Path, int]:
        """Every folder of a mixture, and how often it is read. AuroraError for one without tars."""
        if is_remote(root):
            raise AuroraError(f"{self.told}: {root} is not on this machine; data=webdataset reads from there")
        for name, part in mixture.datasets.items():
            if part != Part(repeats=part.repeats):
                raise AuroraError(f"{self.told}: of a mixture it knows folders and repeats; {name} says more")
            if not any(Path(root, name).glob("*.tar")):
                raise AuroraError(f"{self.told}: {Path(root, name)} holds no tar")
        return {Path(root, name).absolute(): part.repeats for name, part in mixture.datasets.items()}
