"""Writing shards: deterministic WebDataset tars with a manifest each, and the index of their folder.

The same samples give the same bytes. Everything appears by `os.replace`, so a killed writer leaves nothing that looks
finished, and every function may be run again.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from aurora.errors import AuroraError, BadSample
from aurora.files import replace_file, replacing, room_for

from .format import MEMBER_BYTES, ShardSample, check_key, parse_record
from .index import (
    INDEX,
    UNREADABLE,
    VERSION,
    DatasetIndex,
    MeasuredSample,
    Place,
    index_shard,
    load_index,
    measure_sample,
    npy_bytes,
    require_shards,
    shard_arrays,
    sidecar,
    write_shard_index,
)


def shard_path(folder: str | Path, number: int) -> Path:
    """Where shard `number` of a dataset lies."""
    return Path(folder) / f"{number:06d}.tar"


def done_manifest(tar: Path) -> dict[str, Any] | None:
    """The manifest of a shard that was written and measured to the end, so that a run that was cut off can skip it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        manifest: dict[str, Any] = json.loads(sidecar(tar, "manifest.json").read_bytes())
        if manifest["version"] == VERSION and manifest["bytes"] == tar.stat().st_size:
            return manifest
    return None


def write_shard(
    samples: Iterable[ShardSample], tar: str | Path, *, skip: Callable[[ShardSample, BadSample], None] | None = None
) -> dict[str, Any]:
    """Writes and measures one shard and returns its manifest; one task of a pool. `write_index` joins them.

    A sample whose media cannot be measured is left out and given to `skip`; without `skip` it stays, and the manifest
    lists it as "bad". The tar is hashed while it is written and never read again.
    """
    tar = Path(tar)
    sidecar(tar, "manifest.json").unlink(missing_ok=True)
    measured, seen = list[MeasuredSample](), set[str]()
    # A disk that is full is left with the room that there was.
    with (room_for(tar), replacing(tar, folder=False) as partial, _HashedFile(partial) as file,
          tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive):
        for sample in samples:
            if sample.key in seen:
                raise AuroraError(f"{tar}: the key {sample.key!r} is there twice")
            try:
                measured.append(_add(archive, sample, keep_bad=skip is None))
            except BadSample as error:
                if skip is None:
                    raise AuroraError(f"{tar}: sample {sample.key!r}: {error.detail}") from error
                skip(sample, error)
                continue
            seen.add(sample.key)
    return write_shard_index(tar, file.hash.hexdigest(), measured)


def write_index(folder: str | Path) -> DatasetIndex:
    """Joins the shards of a folder into its index; tars that have no manifest yet are measured first. AuroraError when
    no sample of them can be used."""
    folder = Path(folder)
    require_shards(folder)
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise AuroraError(f"{folder} holds no tar to index")
    samples, media, shards, bad, start = [], [], [], [], 0
    for number, tar in enumerate(tars):
        manifest = done_manifest(tar) or index_shard(tar)
        try:
            rows, members = shard_arrays(tar)
        except UNREADABLE:
            manifest = index_shard(tar)
            rows, members = shard_arrays(tar)
        rows["shard"] = number
        rows["media"] += np.uint64(start)
        start += len(members)
        samples.append(rows)
        media.append(members)
        shards.append({key: manifest[key] for key in ("name", "bytes", "sha256", "samples")})
        bad += [f"{tar}, {one['key']}: {one['detail']}" for one in manifest["bad"]]
    if bad and not sum(map(len, samples)):
        raise AuroraError(f"not one of the {len(bad)} samples of {folder} can be used; the first is {bad[0]}. A record "
                          'is {"image": "jpg", "conversations": [...]}, see docs/your-own-data.md; `aurora shards '
                          "build` makes shards of other datasets")
    replace_file(folder / "index.samples.npy", npy_bytes(np.concatenate(samples)))
    replace_file(folder / "index.media.npy", npy_bytes(np.concatenate(media)))
    replace_file(folder / INDEX, json.dumps({"version": VERSION, "shards": shards}, indent=1).encode())
    return load_index(folder)


class Cut:
    """Says which shard each sample goes to, one after the other."""

    def __init__(self, samples: int, size: int) -> None:
        if samples < 1 or size < 1:
            raise AuroraError(f"samples_per_shard {samples} and shard_bytes {size} must be 1 or more")
        self.samples, self.size = samples, size
        self.shard, self.count, self.bytes = 0, 0, 0

    def __call__(self, size: int) -> int:
        """The shard of the next sample, whose media have `size` bytes."""
        if self.count == self.samples or self.bytes > self.size:
            self.shard, self.count, self.bytes = self.shard + 1, 0, 0
        self.count += 1
        self.bytes += size
        return self.shard


def _members(sample: ShardSample) -> Iterator[tuple[str, bytes]]:
    """Extension and bytes of every member, the record first. BadSample for a record outside the format, AuroraError
    for a key that no member can have, and for media that are not those of the record."""
    check_key(sample.key)
    try:
        raw = json.dumps(dict(sample.record), ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadSample("json", f"the record is not JSON: {error}") from error
    record = parse_record(raw)
    if set(record.media) != set(sample.media):
        raise AuroraError(f"sample {sample.key!r}: the record names the media {sorted(record.media)}, "
                          f"given are {sorted(sample.media)}")
    yield "json", raw
    for extension in record.media:
        yield extension, medium_bytes(sample.media[extension])


def medium_bytes(data: bytes | Path) -> bytes:
    """The bytes of a medium. BadSample when it is missing or too large."""
    try:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if size > MEMBER_BYTES:
            raise BadSample("limits", f"a member of {size} bytes is larger than {MEMBER_BYTES}")
        return data.read_bytes() if isinstance(data, Path) else data
    except OSError as error:
        raise BadSample("missing", f"{error.filename}: {error.strerror}") from error


class _HashedFile(io.BufferedWriter):
    """A new file whose bytes are hashed while they are written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.hash = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.hash.update(data)
        return super().write(data)


def _add(archive: tarfile.TarFile, sample: ShardSample, *, keep_bad: bool) -> MeasuredSample:
    """Writes a sample. BadSample, and nothing written, when it cannot be measured, unless `keep_bad`."""
    places: dict[str, Place] = {}
    data: dict[Place, bytes] = {}
    at = archive.offset
    for extension, content in _members(sample):
        places[extension] = (at + tarfile.BLOCKSIZE, len(content))
        data[places[extension]] = content
        at += tarfile.BLOCKSIZE + len(content) + -len(content) % tarfile.BLOCKSIZE
    measured = measure_sample(sample.key, places, data.__getitem__)
    if measured.bad and not keep_bad:
        raise BadSample(measured.bad[0]["reason"], measured.bad[0]["detail"])
    for extension, place in places.items():
        # nothing in the header of such a member depends on who writes it, or when
        member = tarfile.TarInfo(f"{sample.key}.{extension}")
        member.size = place[1]
        archive.addfile(member, io.BytesIO(data[place]))
    return measured
