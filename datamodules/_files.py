"""Reading members of shards by offset."""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from pathlib import Path

from ._index import DatasetIndex
from ._samples import LIMITS, BadSample

_OPEN = 32


class ShardFiles:
    """The most recently used shards of a process, kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def record(self, index: DatasetIndex, sample: int) -> tuple[str, bytes]:
        """A sample's key and the bytes of its json member. BadSample when the shard holds something else there."""
        row = index.samples[sample]
        name, data = self._member(index.path(sample), int(row["offset"]), int(row["size"]))
        if not name.endswith(".json"):
            raise BadSample("shard", f"{index.path(sample)} holds {name!r} where a json member should be")
        return name.removesuffix(".json"), data

    def media(self, index: DatasetIndex, sample: int, number: int, name: str) -> bytes:
        """The bytes of a sample's media member, which is called `name`."""
        row = index.media_of(sample)[number]
        if not row["offset"]:
            raise BadSample("missing", f"no member {name}")
        found, data = self._member(index.path(sample), int(row["offset"]), int(row["size"]))
        if found != name:
            raise BadSample("shard", f"{index.path(sample)} holds {found!r} where {name!r} should be")
        return data

    def close(self) -> None:
        """Closes every shard."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _member(self, shard: Path, offset: int, size: int) -> tuple[str, bytes]:
        if size > LIMITS.member_bytes:
            raise BadSample("limits", f"a member of {size} bytes is larger than {LIMITS.member_bytes}")
        # The header stands right before the data; reading both tells a shard that was changed from the one indexed.
        block = os.pread(self._descriptor(shard), tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
        try:
            header = tarfile.TarInfo.frombuf(block[:tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadSample("shard", f"{shard} at {offset}: {error}") from error
        data = block[tarfile.BLOCKSIZE:]
        if header.size != size or len(data) != size:
            raise BadSample("shard", f"{shard} at {offset}: {len(data)} bytes of {header.name!r}, not {size}")
        return header.name, data

    def _descriptor(self, shard: Path) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) == _OPEN:
            os.close(self._open.popitem(last=False)[1])
        try:
            self._open[shard] = os.open(shard, os.O_RDONLY)
        except OSError as error:
            raise BadSample("shard", f"{shard}: {error.strerror}") from error
        return self._open[shard]
