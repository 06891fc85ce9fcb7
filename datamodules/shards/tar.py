"""Reading members of shards by offset, and the tar headers that shards have."""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import BadSample

from .format import MEMBER_BYTES
from .index import ORIGIN, DatasetIndex, file_digest

_OPEN = 32


class _Located(NamedTuple):
    """Where a sample stands."""

    dataset: DatasetIndex
    sample: int
    descriptor: int  # of its shard
    size: int  # of its record, in bytes
    offset: int
    media: int  # its first row in the index's table of media

    def __str__(self) -> str:
        return str(self.dataset.path(self.sample))


class ShardFiles:
    """The most recently used shards of a process, kept open.

    With `verify` every byte of a shard is compared with its index when this process first reads of it.
    """

    def __init__(self, *, verify: bool = False) -> None:
        self._verify = verify
        # by their sha256, which is compared faster than their paths
        self._open: OrderedDict[str, int] = OrderedDict()
        self._verified: set[str] = set()
        self._bad: dict[str, BadSample] = {}
        self._last: _Located | None = None

    def ready(self, index: DatasetIndex, sample: int) -> None:
        """Opens the shard of a sample, which may have to be fetched first. Errors come when the sample is read."""
        with suppress(BadSample):
            self._descriptor(index, index.shard(sample))

    def record(self, index: DatasetIndex, sample: int) -> tuple[str, bytes]:
        """A sample's key and the bytes of its json member. BadSample when the shard holds something else there."""
        place = self._find(index, sample)
        name, data = self._member(place, place.offset, place.size)
        if not name.endswith(".json"):
            raise BadSample("shard", f"{index.path(sample)} holds {name!r} where a json member should be")
        return name.removesuffix(".json"), data

    def media(self, index: DatasetIndex, sample: int, number: int, name: str) -> bytes:
        """The bytes of a sample's media member, which is called `name`."""
        place = self._find(index, sample)
        row = index.media[place.media + number]
        offset = int(row["offset"])
        if not offset:
            raise BadSample("missing", f"no member {name}")
        found, data = self._member(place, offset, int(row["size"]))
        if found != name:
            raise BadSample("shard", f"{index.path(sample)} holds {found!r} where {name!r} should be")
        return data

    def close(self) -> None:
        """Closes every shard."""
        self._last = None
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _find(self, index: DatasetIndex, sample: int) -> _Located:
        """Where a sample stands: looked up once for its record and its media, which follow each other."""
        place = self._last
        if place is None or place.sample != sample or place.dataset is not index:
            shard, _, _, size, offset, media = index.samples[sample].item()
            place = _Located(index, sample, self._descriptor(index, index.shards[shard]), size, offset, media)
            self._last = place
        return place

    def _member(self, place: _Located, offset: int, size: int) -> tuple[str, bytes]:
        if size > MEMBER_BYTES:
            raise BadSample("limits", f"a member of {size} bytes is larger than {MEMBER_BYTES}")
        # The header stands right before the data; reading both shows when a shard is not the one indexed.
        block = os.pread(place.descriptor, tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
        data = block[tarfile.BLOCKSIZE:]
        try:
            name, length = _header(block[:tarfile.BLOCKSIZE])
        except tarfile.HeaderError as error:
            raise BadSample("shard", f"{place} at {offset}: {error}") from error
        if length != size or len(data) != size:
            raise BadSample("shard", f"{place} at {offset}: {len(data)} bytes of {name!r}, not {size}")
        return name, data

    def _descriptor(self, index: DatasetIndex, row: Mapping[str, Any]) -> int:
        shard = row["sha256"]
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if shard in self._bad:
            raise self._bad[shard]
        if len(self._open) == _OPEN:
            self._last = None  # it may be of the shard that is closed
            os.close(self._open.popitem(last=False)[1])
        try:
            self._open[shard] = self._opened(index.folder, row)
        except BadSample as error:
            self._bad[shard] = error
            raise
        return self._open[shard]

    def _opened(self, folder: Path, row: Mapping[str, Any]) -> int:
        shard = folder / row["name"]
        if (folder / ORIGIN).is_file():
            from .remote import open_shard  # the packages behind it are not needed for local shards

            return open_shard(folder, row)  # which compares every byte
        try:
            descriptor = os.open(shard, os.O_RDONLY)
        except OSError as error:
            raise BadSample("shard", f"{shard}: {error.strerror}") from error
        if self._verify and row["sha256"] not in self._verified:
            with open(descriptor, "rb", closefd=False) as file:
                digest = file_digest(file)
            if digest != row["sha256"]:
                os.close(descriptor)
                raise BadSample("shard", f"{shard}: sha256 is {digest}, not {row['sha256']}")
            self._verified.add(digest)
        return descriptor


def _rest(header: bytes) -> bytes:
    """A tar header without the fields that differ between the members of a shard: name, size and checksum."""
    return header[100:124] + header[136:148] + header[156:512]


def _tar_header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


_REST = _rest(_tar_header("", 0))
_SUM = sum(_REST) + 8 * ord(" ")  # the checksum's own field counts as spaces


def member_header(name: str, size: int) -> bytes:
    """The tar header of a member as shards have it: nothing in it depends on who writes it, or when."""
    stem, length = name.encode(), b"%011o\0" % size
    if len(stem) > 100 or len(length) > 12:
        return _tar_header(name, size)
    # As tarfile writes it, in a tenth of its time.
    checksum = b"%06o\0 " % (sum(stem) + sum(length) + _SUM)
    return b"".join((stem.ljust(100, b"\0"), _REST[:24], length, _REST[24:36], checksum, _REST[36:]))


def _header(block: bytes) -> tuple[str, int]:
    """The name and size in a tar header. tarfile.HeaderError where it is not one."""
    # The same here, the other way round.
    name, size = block[:100].rstrip(b"\0"), block[124:136]
    try:
        if _rest(block) == _REST and sum(name + size) + _SUM == int(block[148:154], 8):
            return name.decode("utf-8", "surrogateescape"), int(size[:11], 8)
    except (ValueError, IndexError):
        pass  # tarfile says what is wrong
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return header.name, header.size
