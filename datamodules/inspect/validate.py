"""Whether shards still hold what was written, and whether what they hold can be decoded.

One task checks one shard, so that any executor can run them. Whatever is wrong becomes a finding: nothing is raised
and nothing is repaired here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.images import decode_image
from aurora.interfaces import Sampling
from aurora.registry import READER

from ..reader._decode import sample_counts
from ..shards.format import VIDEO, Record, parse_record
from ..shards.index import INDEX, UNREADABLE, DatasetIndex, file_digest, open_index, shard_arrays, sidecar
from ..shards.tar import ShardFiles

ONE_PER_SECOND = Sampling(fps=1.0)
"""Frames of a video that are decoded when it is checked."""


class Finding(NamedTuple):
    """Something that is wrong. A finding about a whole shard has no key, one about a folder no shard either."""

    dataset: str
    shard: str
    key: str
    reason: str
    detail: str
    origin: str = ""  # the record's own "id": where the sample came from


class Checked(NamedTuple):
    """What came of one task."""

    samples: int
    decoded: int
    findings: list[Finding]


class CheckTask(NamedTuple):
    """One shard of a folder to be checked."""

    folder: Path
    number: int
    decode: int | None  # samples of the shard to decode, spread over it; None: all
    reader: Mapping[str, Any]


def tasks(
    folder: str | Path, *, decode: int | None, reader: Mapping[str, Any]
) -> tuple[list[CheckTask], list[Finding]]:
    """The tasks of a folder, and what is wrong with the folder as a whole."""
    folder = Path(folder)
    try:
        index = open_index(folder)
    except AuroraError as error:
        if not folder.is_dir():
            raise
        return [], [Finding(folder.name, "", "", "index", str(error))]
    known = {str(row["name"]) for row in index.shards}
    strange = sorted({path.name for path in folder.glob("*.tar")} - known)
    findings = [Finding(folder.name, name, "", "unknown", f"{INDEX} does not know this tar") for name in strange]
    return [CheckTask(folder, number, decode, reader) for number in range(len(index.shards))], findings


def check_shard(task: CheckTask) -> Checked:
    """Compares a shard with its manifest and decodes samples of it."""
    index = open_index(task.folder)
    shard = index.shards[task.number]
    name, tar = str(shard["name"]), task.folder / str(shard["name"])
    whole = [Finding(task.folder.name, name, "", *wrong) for wrong in _bytes(tar, task.number, index)]
    samples = index.of_shard(task.number)
    if any(finding.reason == "missing" for finding in whole):
        return Checked(len(samples), 0, whole)
    spread = np.unique(np.linspace(0, len(samples) - 1, min(task.decode or 0, len(samples))).astype(np.int64))
    chosen = samples if task.decode is None else [samples[place] for place in spread.tolist()]
    return Checked(len(samples), len(chosen), [*whole, *_decoded(index, name, chosen, task.reader)])


def _bytes(tar: Path, number: int, index: DatasetIndex) -> Iterator[tuple[str, str]]:
    """(reason, detail) of everything in which a tar is not the one that was indexed."""
    shard = index.shards[number]
    try:
        with tar.open("rb") as file:
            digest = file_digest(file)
            size = file.tell()
    except OSError as error:
        yield "missing", str(error.strerror)
        return
    if size != shard["bytes"]:
        yield "bytes", f"{size} bytes, not the {shard['bytes']} that were written"
    if digest != shard["sha256"]:
        yield "sha256", f"{digest}, not {shard['sha256']}"
    try:
        manifest = json.loads(sidecar(tar, "manifest.json").read_bytes())
        if (manifest["sha256"], manifest["samples"]) != (shard["sha256"], shard["samples"]):
            yield "manifest", "it is of another tar than the folder's index; run `aurora shards index`"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield "manifest", f"it cannot be read: {error}"
    # whether the folder's arrays hold what this shard's own index says
    try:
        samples, media = shard_arrays(tar)
    except UNREADABLE as error:
        yield "index", f"{sidecar(tar, 'index.npz').name} cannot be read: {error}"
        return
    these = index.of_shard(number)
    mine = np.array(index.samples[these.start:these.stop])
    start = int(mine["media"][0]) if len(mine) else 0
    mine["shard"] -= np.uint32(number)  # 0 as in the shard's own index, unless it is of another
    mine["media"] -= np.uint64(start)
    if not np.array_equal(mine, samples) or not np.array_equal(index.media[start:start + len(media)], media):
        yield "index", "the folder's arrays are not those of the shard; run `aurora shards index`"


def _decoded(index: DatasetIndex, shard: str, samples: Iterable[int], reader: Mapping[str, Any]) -> Iterator[Finding]:
    files, part = ShardFiles(), READER.build(reader)
    for sample in samples:
        key, origin = f"#{sample}", ""
        try:
            key, raw = files.record(index, sample)
            record = parse_record(raw)
            origin = str(json.loads(raw).get("id", ""))
            row = index.samples[sample]
            if (record.kind, len(record.media)) != (int(row["kind"]), int(row["count"])):
                raise BadSample("index", "the record speaks of other media than its index")
            for number, extension in enumerate(record.media):
                data = files.media(index, sample, number, f"{key}.{extension}")
                _decode(data, record, index.media_of(sample)[number], part)
        except BadSample as error:
            yield Finding(index.folder.name, shard, key, error.reason, error.detail, origin)


def _decode(data: bytes, record: Record, row: np.void, reader: Any) -> None:
    """Decodes one medium. BadSample when it is not what the index says."""
    if record.kind != VIDEO:
        found = decode_image(data).shape[:2]
        if found != (int(row["height"]), int(row["width"])):
            raise BadSample("index", f"{found[0]}×{found[1]} pixels, not {row['height']}×{row['width']}")
        return
    planned = int(sample_counts(ONE_PER_SECOND, row["duration"], row["frames"]))
    with bad_sample("video"):
        frames = sum(1 for _ in reader.read(data, replace(ONE_PER_SECOND, start=record.start, stop=record.stop)))
    if frames != planned:
        raise BadSample("index", f"{frames} frames at one per second, not {planned}")
