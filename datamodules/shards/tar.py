"""Reading members of shards by offset."""

import os
import tarfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aurora.errors import BadSample

from .format import MEMBER_BYTES
from .index import ORIGIN, DatasetIndex, file_digest

_OPEN = 32


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

    def ready(self, index: DatasetIndex, sample: int) -> None:
        """Opens the shard of a sample, which may have to be fetched first. Errors come when the sample is read."""
        with suppress(BadSample):
            self._descriptor(index, index.shard(sample))

    def record(self, index: DatasetIndex, sample: int) -> tuple[str, bytes]:
        """A sample's key and the bytes of its json member. BadSample when the shard holds something else there."""
        shard, _, _, size, offset, _ = index.samples[sample].item()
        name, data = self._member(index, shard, offset, size)
        if not name.lower().endswith(".json"):
            raise BadSample("shard", f"{index.path(sample)} holds {name!r} where a json member should be")
        return name[:-len(".json")], data

    def media(self, index: DatasetIndex, sample: int, number: int, name: str) -> bytes:
        """The bytes of a sample's media member, which is called `name`."""
        shard, *_, first = index.samples[sample].item()
        offset, size, *_ = index.media[first + number].item()
        if not offset:
            raise BadSample("missing", f"no member {name}")
        found, data = self._member(index, shard, offset, size)
        if found.lower() != name.lower():  # extensions are in small letters in an index
            raise BadSample("shard", f"{index.path(sample)} holds {found!r} where {name!r} should be")
        return data

    def close(self) -> None:
        """Closes every shard."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _member(self, index: DatasetIndex, shard: int, offset: int, size: int) -> tuple[str, bytes]:
        if size > MEMBER_BYTES:
            raise BadSample("limits", f"a member of {size} bytes is larger than {MEMBER_BYTES}")
        # The header stands right before the data; reading both shows when a shard is not the one indexed.
        row = index.shards[shard]
        block = os.pread(self._descriptor(index, row), tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
        data = block[tarfile.BLOCKSIZE:]
        try:
            name, length = _header(block[:tarfile.BLOCKSIZE])
        except ValueError as error:
            raise BadSample("shard", f"{index.folder / row['name']} at {offset}: {error}") from error
        if length != size or len(data) != size:
            raise BadSample("shard", f"{index.folder / row['name']} at {offset}: {len(data)} bytes of {name!r}, "
                                     f"not {size}")
        return name, data

    def _descriptor(self, index: DatasetIndex, row: Mapping[str, Any]) -> int:
        shard = row["sha256"]
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if shard in self._bad:
            raise self._bad[shard]
        if len(self._open) == _OPEN:
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


def _header(block: bytes) -> tuple[str, int]:
    """The name and size in a tar header. ValueError where it is not one."""
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != int(block[148:156].strip(b"\0 "), 8):
        raise ValueError("a tar header with a wrong checksum")
    # Keys are short enough for the first field of any kind of tar.
    return block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"), int(block[124:136].strip(b"\0 "), 8)
