"""What megatron-energon reads of our shards: sequences of samples, and rows that it packs with our rules."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml
from megatron.energon import (
    Cooker,
    Sample,
    TaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.edataclass import edataclass
from megatron.energon.flavors.webdataset import BaseWebdatasetFactory

from aurora.types import PackedBatch

from ._rows import Segment, Skipped
from ._samples import BadSample
from ._segments import Segments
from ._writing import replace_file

_WAITING = 64  # sequences among which rows are chosen
_META = ".nv-meta"
_PREPARERS = 4
_log = logging.getLogger(__name__)


def prepare(folder: Path) -> None:
    """Has energon index the tars of a folder, unless its dataset.yaml, written last, says that this was done."""
    if (folder / _META / "dataset.yaml").is_file():
        return
    _log.warning("data 'energon': %s is prepared; this is done once", folder)
    tars = sorted(path.name for path in folder.glob("*.tar"))
    BaseWebdatasetFactory.prepare_dataset(folder, tars, split_parts_ratio=[("train", 1.0)], shuffle_seed=None,
                                          workers=min(_PREPARERS, len(tars)))
    told = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    replace_file(folder / _META / "dataset.yaml", yaml.safe_dump(told).encode())


def rows(
    repeats: Mapping[Path, int], maker: Segments, *, rank: int, world: int, workers: int, seed: int, shuffle: int
) -> Iterator[tuple[PackedBatch, list[Skipped]]]:
    """The rows of a rank from prepared folders, without end, each with what was bad among the samples that came by."""
    with tempfile.TemporaryDirectory() as scratch:
        mixture = Path(scratch) / "mixture.yaml"
        parts = [{"path": str(folder), "repetitions": times} for folder, times in repeats.items()]
        mixture.write_text(yaml.safe_dump({"__module__": "megatron.energon", "__class__": "MetadatasetV2",
                                           "splits": {"train": {"blend_epochized": parts}}}), encoding="utf-8")
        found = get_train_dataset(
            mixture, worker_config=WorkerConfig(rank=rank, world_size=world, num_workers=workers, seed_offset=seed),
            batch_size=None, packing_buffer_size=_WAITING, shuffle_buffer_size=shuffle, max_samples_per_sequence=None,
            task_encoder=_Encoder(maker))
    for row in get_savable_loader(found, watchdog_timeout_seconds=None):
        yield row.batch, row.skipped


@edataclass
class _Sequence(Sample):  # type: ignore[misc]
    """A sample as a sequence, or why it is none."""

    made: Segment | None
    skipped: list[Skipped] = field(default_factory=list)


@edataclass
class _Row(Sample):  # type: ignore[misc]
    """A row, and what was bad among the samples that came by."""

    batch: PackedBatch
    skipped: list[Skipped]


class _Encoder(TaskEncoder):  # type: ignore[misc]
    """Turns samples into sequences and those into rows."""

    decoder = None  # members stay bytes until they are ours to decode

    def __init__(self, maker: Segments) -> None:
        super().__init__()
        self.cookers = [Cooker(self.make_sequence)]
        self._maker = maker

    @stateless  # type: ignore[untyped-decorator]
    def make_sequence(self, sample: Mapping[str, Any]) -> _Sequence:
        """The sequence of a sample as energon reads it."""
        told = basic_sample_keys(sample)
        try:
            return _Sequence(**told, made=self._maker.make(sample))
        except BadSample as error:
            tar = _tar(sample["__sources__"])
            bad = Skipped(tar.parent.name, tar.name, str(sample["__key__"]), error.reason, error.detail)
            return _Sequence(**told, made=None, skipped=[bad])

    def select_samples_to_pack(self, samples: list[_Sequence]) -> list[list[_Sequence]]:
        """Rows of sequences, the bad ones with the first."""
        bad = [one for one in samples if one.made is None]
        waiting = [one for one in samples if one.made is not None]
        rows = []
        while waiting:
            taken = self._maker.chosen([one.made for one in waiting if one.made is not None])
            rows.append([waiting[place] for place in taken])
            waiting = [one for place, one in enumerate(waiting) if place not in taken]
        return [bad + rows[0], *rows[1:]] if rows else [bad]

    @stateless  # type: ignore[untyped-decorator]
    def pack_selected_samples(self, samples: list[_Sequence]) -> _Row:
        """One row."""
        waiting = [one.made for one in samples if one.made is not None]
        return _Row(__key__=samples[0].__key__, __restore_key__=(), batch=self._maker.row(waiting),
                    skipped=[bad for one in samples for bad in one.skipped])


def _tar(sources: Sequence[Any]) -> Path:
    """The shard that a sample comes from."""
    return Path(str(sources[0].dataset_path), str(sources[0].shard_name))
