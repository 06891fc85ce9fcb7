"""A small dataset of shards in one go, for tests and measurements; `aurora shards build` makes those of users."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from datamodules.shards.format import ShardSample
from datamodules.shards.index import INDEX, DatasetIndex, sidecar
from datamodules.shards.writing import Cut, medium_bytes, shard_path, write_index, write_shard


def write_shards(
    samples: Iterable[ShardSample], folder: str | Path, *, samples_per_shard: int = 1000, shard_bytes: int = 1 << 30
) -> DatasetIndex:
    """Writes a whole dataset in one go and returns its index; what stood in the folder is replaced.

    A shard ends at `samples_per_shard` samples, or with the sample that takes it past `shard_bytes`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Without the folder's index a half-written dataset is not taken for a whole one.
    folder.joinpath(INDEX).unlink(missing_ok=True)
    written = set()
    cut = Cut(samples_per_shard, shard_bytes)

    def shard_of(sample: ShardSample) -> int:
        return cut(sum(len(medium_bytes(medium)) for medium in sample.media.values()))

    for number, group in itertools.groupby(samples, shard_of):
        tar = shard_path(folder, number)
        write_shard(group, tar)
        written.add(tar)
    for stale in set(folder.glob("*.tar")) - written:
        for path in (stale, sidecar(stale, "index.npz"), sidecar(stale, "manifest.json")):
            path.unlink(missing_ok=True)
    return write_index(folder)
