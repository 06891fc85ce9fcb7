"""Rows from shards that megatron-energon reads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning

from aurora.errors import AuroraError
from aurora.images import VisualLayout
from aurora.interfaces import DataModule, Prompt, Sampling, Tokenizer, VideoReader
from aurora.mixture import Mixture, Part, read_mixture
from aurora.registry import DATA
from aurora.types import PackedBatch

from ._files import is_remote
from ._loader import BadSamples
from ._schedule import Position, check_position, rank_and_world
from ._segments import Segments
from .reader._sampling import check_sampling


@DATA.register
class EnergonModule(lightning.LightningDataModule, DataModule):  # type: ignore[misc]
    """Tars of the folders of a mixture below `root`, read by megatron-energon and packed on the fly.

    A peer to measure and compare with. A folder is prepared when it is first read: its `.nv-meta` and a `.tar.idx`
    beside every tar are written. Shards are divided among ranks and workers and read for ever, `repeats` of a folder
    as often as once of another; all ranks make the same steps of `rows_per_step` rows. A run goes on exactly where it
    stopped, on the same number of ranks and workers alone, and by reading again, without learning, what it had read.
    What `webdataset` promises beyond that it cannot: that each sample is read once before any is read again, the same
    order on other layouts, a crash or a hang that costs one sample. Samples longer than a row count as bad.
    """

    def __init__(
        self, *, root: str, mixture: Mapping[str, Any] | Mixture, row_tokens: int, row_frames: int, rows_per_step: int,
        tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None, reader: VideoReader,
        max_steps: int | None, seed: int = 0, workers: int = 0, shuffle: int = 1000,
        fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
        max_bad_rate: float = 0.01, bad_rate_after: int = 200, quarantine: str | None = None,
    ) -> None:
        super().__init__()
        self._peer = _peer()
        if max_steps is None:
            raise AuroraError("data 'energon': its rows have no end; stages.STAGE.max_steps says how long to train")
        least = {"row_tokens": (row_tokens, 1), "row_frames": (row_frames, 1), "rows_per_step": (rows_per_step, 1),
                 "max_steps": (max_steps, 1), "workers": (workers, 0), "shuffle": (shuffle, 1), "seed": (seed, 0)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise AuroraError(f"data 'energon': {name} {value} must be {smallest} or more")
        self.position: Position = (0, 0, 0)
        self.bad: BadSamples | None = None
        self.folders = _folders(root, read_mixture("data.mixture", mixture))
        self.rows_per_step, self.steps, self.seed, self.workers, self.shuffle = (
            rows_per_step, max_steps, seed, workers, shuffle)
        self._maker = Segments(tokenizer, prompt, layout, reader, check_sampling(
            Sampling(fps=fps, frames=frames, max_frames=max_frames)), row_tokens, row_frames)
        self._bad = (max_bad_rate, bad_rate_after, None if quarantine is None else Path(quarantine))
        self._layout: list[int] | None = None  # ranks and workers of the run that goes on

    def prepare_data(self) -> None:
        """Writes what energon wants beside the shards, once per machine."""
        for folder in self.folders:
            self._peer.prepare(folder)

    def train_dataloader(self) -> Iterator[PackedBatch]:
        rank, world = rank_and_world(self.trainer)
        if self.rows_per_step % world:
            raise AuroraError(f"data 'energon': rows_per_step {self.rows_per_step} does not divide by {world} ranks")
        began = self._layout
        if began is not None and began != [world, self.workers]:
            raise AuroraError(f"data 'energon': the run began on {began[0]} ranks with {began[1]} workers each and "
                              f"goes on so alone, not on {world} with {self.workers}")
        path = self._bad[2]
        if path is not None and world > 1:
            path = path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self.bad = BadSamples(self._bad[0], self._bad[1], path)
        return self._rows(self.bad, rank, world)

    def _rows(self, bad: BadSamples, rank: int, world: int) -> Iterator[PackedBatch]:
        repeats = {folder: part.repeats for folder, part in self.folders.items()}
        rows = self._peer.rows(repeats, self._maker, rank=rank, world=world, workers=self.workers, seed=self.seed,
                               shuffle=self.shuffle)
        rows_per_step, done = self.rows_per_step // world, self.position[1]
        for step in range(self.steps):
            for row in range(rows_per_step):
                batch, skipped = next(rows)
                if step < done:
                    continue
                bad.add(batch.samples + len(skipped), skipped)
                last = row == rows_per_step - 1
                yield batch._replace(closes_step=last, position=(0, step + last, 0))

    def steps_per_epoch(self) -> int:
        return self.steps

    def total_steps(self) -> int:
        return self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"position": list(self.position), "layout": [rank_and_world(self.trainer)[1], self.workers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.position = check_position(state_dict.get("position"))
        self._layout = state_dict.get("layout")


def _folders(root: str, mixture: Mixture) -> dict[Path, Part]:
    if is_remote(root):
        raise AuroraError(f"data 'energon': {root} is not on this machine; data=webdataset reads from there")
    for name, part in mixture.datasets.items():
        if part != Part(repeats=part.repeats):
            raise AuroraError(f"data 'energon': of a mixture it knows folders and repeats; {name} says more")
        if not any(Path(root, name).glob("*.tar")):
            raise AuroraError(f"data 'energon': {Path(root, name)} holds no tar")
    return {Path(root, name).absolute(): part for name, part in mixture.datasets.items()}


def _peer() -> ModuleType:
    """What needs the package."""
    try:
        return importlib.import_module("._energon", __package__)
    except ModuleNotFoundError as error:
        raise AuroraError(f"data 'energon' needs the package {error.name!r}, which is not installed; try: pip install "
                          "'auroralong[energon]'") from error
