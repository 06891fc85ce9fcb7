"""Rows from shards that megatron-energon reads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aurora.errors import AuroraError
from aurora.mixture import Mixture
from aurora.registry import DATA
from aurora.types import PackedBatch

from ._endless import Endless
from ._loader import BadSamples
from ._schedule import rank_and_world


@DATA.register
class EnergonModule(Endless):
    """Tars of the folders of a mixture below `root`, read by megatron-energon and packed on the fly.

    A peer to measure and compare with. A folder is prepared when it is first read: its `.nv-meta` and a `.tar.idx`
    beside every tar are written. Shards are divided among ranks and workers and read for ever, `repeats` of a folder
    as often as once of another; all ranks make the same steps of `rows_per_step` rows. A run goes on exactly where it
    stopped, on the same number of ranks and workers alone, and by reading again, without learning, what it had read.
    What `webdataset` promises beyond that it cannot: that each sample is read once before any is read again, the same
    order on other layouts, a crash or a hang that costs one sample. Samples longer than a row count as bad.
    """

    _layout: list[int] | None = None  # ranks and workers of the run that goes on

    def prepare_data(self) -> None:
        """Writes what energon wants beside the shards, once per machine."""
        for folder in self.folders:
            self._peer.prepare(folder)

    def train_dataloader(self) -> Iterator[PackedBatch]:
        began, now = self._layout, [rank_and_world(self.trainer)[1], self.workers]
        if began is not None and began != now:
            raise AuroraError(f"{self.told}: the run began on {began[0]} ranks with {began[1]} workers each and "
                              f"goes on so alone, not on {now[0]} with {now[1]}")
        return super().train_dataloader()

    def rows(self, bad: BadSamples, rank: int, world: int) -> Iterator[PackedBatch]:
        rows = self._peer.rows(self.folders, self.maker, rank=rank, world=world, workers=self.workers, seed=self.seed,
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

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "layout": [rank_and_world(self.trainer)[1], self.workers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._layout = state_dict.get("layout")

    def _folders(self, root: str, mixture: Mixture) -> dict[Path, int]:
        self._peer = _peer()
        return super()._folders(root, mixture)


def _peer() -> ModuleType:
    """What needs the package."""
    try:
        return importlib.import_module("._energon", __package__)
    except ModuleNotFoundError as error:
        raise AuroraError(f"data 'energon' needs the package {error.name!r}, which is not installed; try: pip install "
                          "'auroralong[energon]'") from error
