"""What the shards of a dataset hold and where, as two arrays that workers share by mapping them.

Beside every `000000.tar` lie `000000.index.npz` (its rows) and `000000.manifest.json` (bytes, sha256, sample count),
written last. For the folder they are joined into `index.samples.npy`, `index.media.npy` and `index.json`.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from zipfile import BadZipFile

import numpy as np

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.files import replace_file
from aurora.images import image_shape

from ..reader._file import measure, video_shape
from .format import KINDS, MEMBER_BYTES, VIDEO, check_foreign_key, check_members, is_read, parse_record, split_name

VERSION = 2  # 1 measured videos by their packets, and not as they are shown
INDEX = "index.json"
ORIGIN = "origin.json"  # in a mirror of a remote dataset, whose shards come when they are needed
SCHEMES = {"s3": "s3", "gs": "gcs", "https": ""}
"""What shards may be read from, and the extra to install for it. `pipe:` and its like would run a shell."""
SAMPLE = np.dtype([
    ("shard", "<u4"), ("kind", "u1"), ("count", "<u2"),  # media members of the sample
    ("size", "<u4"), ("offset", "<u8"),  # bytes of the json member
    ("media", "<u8"),  # index of the first media row
])
MEDIA = np.dtype([
    ("offset", "<u8"), ("size", "<u8"),  # 0, 0 for a member that is missing
    ("height", "<u4"), ("width", "<u4"),  # upright; 0 for a member that could not be measured
    ("frames", "<u4"), ("first", "<f8"), ("last", "<f8"), ("duration", "<f8"),  # as in reader._file.Clip; 0 for images
])

UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile)
"""What reading arrays raises that are missing or not whole."""


@dataclass(frozen=True)
class DatasetIndex:
    """The index of one folder."""

    folder: Path
    shards: tuple[dict[str, Any], ...]  # name, bytes, sha256, samples
    samples: np.ndarray  # [S] SAMPLE
    media: np.ndarray  # [K] MEDIA
    digest: str  # of the shards' digests: what these samples are

    def __len__(self) -> int:
        return len(self.samples)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process maps the same files instead of carrying the arrays.
        return load_index, (self.folder,)

    def path(self, sample: int) -> Path:
        """The shard of a sample."""
        return self.folder / str(self.shard(sample)["name"])

    def shard(self, sample: int) -> dict[str, Any]:
        """What is known of the shard of a sample."""
        return self.shards[int(self.samples[sample]["shard"])]

    def of_shard(self, number: int) -> range:
        """The samples of a shard, which stand together, without looking through all of them."""
        start = sum(int(row["samples"]) for row in self.shards[:number])
        return range(start, start + int(self.shards[number]["samples"]))

    def media_of(self, sample: int) -> np.ndarray:
        """[count] MEDIA: the media rows of a sample."""
        row = self.samples[sample]
        return self.media[int(row["media"]):int(row["media"]) + int(row["count"])]


def sidecar(tar: Path, suffix: str) -> Path:
    """`000000.tar` → `000000.<suffix>`."""
    return tar.with_name(f"{tar.name.removesuffix('.tar')}.{suffix}")


def shard_arrays(tar: Path) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one shard, SAMPLE and MEDIA. One of UNREADABLE unless they are whole."""
    # numpy leaves a file open that is not a whole archive, unless it is given it
    with sidecar(tar, "index.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["samples"].astype(SAMPLE), arrays["media"].astype(MEDIA)


def read_sidecar(path: Path, sha256: str) -> dict[str, np.ndarray] | None:
    """Arrays that were measured of a shard and kept beside it; None unless they are whole and of the same bytes."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays) if str(arrays["sha256"]) == sha256 else None
    except UNREADABLE:
        return None


def write_sidecar(path: Path, sha256: str, **arrays: np.ndarray) -> None:
    """Keeps arrays beside the shard that they were measured of, where its folder can be written."""
    if os.access(path.parent, os.W_OK):
        _replace_npz(path, sha256=np.array(sha256), **arrays)


def _replace_npz(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())


def is_remote(root: str) -> bool:
    """Whether a root is on a server. AuroraError for a scheme that nothing is read from."""
    scheme, colon, rest = root.partition(":")
    if not colon or len(scheme) < 2 or os.path.exists(root):
        return False
    # for trying things out on one machine
    loopback = scheme == "http" and urlsplit(root).hostname in ("127.0.0.1", "::1", "localhost")
    if (scheme not in SCHEMES and not loopback) or not rest.startswith("//"):
        raise AuroraError(f"data.root {root!r}: shards are read from a local folder, or from one of "
                          f"{', '.join(f'{name}://' for name in SCHEMES)}; nothing else is opened")
    return True


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as an npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_index(folder: str | Path) -> DatasetIndex:
    """The index of a folder, once every shard was found whole in size. AuroraError that says how to mend it."""
    index = open_index(folder)
    if (index.folder / ORIGIN).is_file():
        return index
    for row in index.shards:
        tar = index.folder / row["name"]
        if not tar.is_file():
            raise AuroraError(f"shard {tar} is missing; {_mend(index.folder)}")
        if tar.stat().st_size != row["bytes"]:
            raise AuroraError(f"shard {tar} has {tar.stat().st_size} bytes, not the {row['bytes']} of its index: it "
                              f"was cut or changed; {_mend(index.folder)}")
    unknown = {path.name for path in index.folder.glob("*.tar")} - {row["name"] for row in index.shards}
    if unknown:
        raise AuroraError(f"{index.folder} holds tars that its index does not know: {', '.join(sorted(unknown))}; "
                          f"{_mend(index.folder)}")
    return index


def open_index(folder: str | Path) -> DatasetIndex:
    """The index of a folder, whatever became of its shards. AuroraError that says how to mend it."""
    if re.match(r"[a-zA-Z0-9+.-]{2,}:", str(folder)) and not Path(folder).exists():
        raise AuroraError(f"{folder} is not a folder on this machine; other schemes are refused, as pipe: would run a "
                          "shell")
    folder = Path(folder)
    require_shards(folder)
    try:
        index = json.loads(folder.joinpath(INDEX).read_bytes())
        shards = tuple(index["shards"])
        if index["version"] != VERSION:
            raise ValueError(f"version {index['version']} is not {VERSION}")
        # plain views, because numpy's own class for mapped files takes its time over every element
        samples = np.load(folder / "index.samples.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        media = np.load(folder / "index.media.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if samples.dtype != SAMPLE or media.dtype != MEDIA or len(samples) != sum(row["samples"] for row in shards):
            raise ValueError("its arrays do not belong to it")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise AuroraError(f"{folder} has no usable index ({error}); {_mend(folder)}") from error
    digest = hashlib.sha256("".join(row["sha256"] for row in shards).encode()).hexdigest()
    return DatasetIndex(folder, shards, samples, media, digest)


def require_shards(folder: Path) -> None:
    """AuroraError for what is not a folder of shards, with the datasets in a folder that holds several."""
    if not folder.is_dir():
        raise AuroraError(f"{folder} is a file; a dataset is a folder of shards" if folder.exists() else
                          f"no dataset folder {folder}")
    if not (folder / INDEX).exists() and not any(folder.glob("*.tar")):
        below = sorted({str(tar.parent) for tar in folder.glob("*/*.tar")})
        raise AuroraError(f"{folder} holds no shards" + (f"; those of datasets are in {', '.join(below)}" if below
                                                         else ", which are files NAME.tar"))


def _mend(folder: Path) -> str:
    return f"write the shards again, or index those that are there: aurora shards index {folder}"


def index_shard(tar: Path) -> dict[str, Any]:
    """Measures a finished tar and writes its index and, last, its manifest, which is returned.

    Samples that cannot be used are left out, and media that cannot be measured stay; the manifest lists both as "bad",
    and counts members that are never read as "unread". AuroraError for what is not a whole tar.
    """
    measured, bad = list[MeasuredSample](), list[dict[str, str]]()
    unread = Counter[str]()
    with tar.open("rb") as file:
        def read(place: Place) -> bytes:
            if place[1] > MEMBER_BYTES:
                raise BadSample("limits", f"{place[1]} bytes are more than {MEMBER_BYTES}")
            file.seek(place[0])
            return file.read(place[1])

        for key, members in _runs(tar, unread):
            try:
                measured.append(measure_sample(key, _checked(key, members), read))
            except BadSample as error:
                bad.append(_found(key, error))
        if not measured and not bad:
            raise AuroraError(f"{tar} holds no sample: no member is called KEY.EXTENSION")
        file.seek(0)
        digest = file_digest(file)
    return write_shard_index(tar, digest, measured, bad, unread)


Place = tuple[int, int]
"""Offset of a member's data in the tar, and its size."""


class MeasuredSample(NamedTuple):
    """What a sample adds to the index of its shard."""

    json: Place
    kind: int
    media: list[tuple[Any, ...]]  # MEDIA rows
    text_bytes: int  # of what is asked and answered
    bad: list[dict[str, str]]  # key, reason, detail


def write_shard_index(
    tar: Path, digest: str, measured: Sequence[MeasuredSample], bad: Sequence[dict[str, str]] = (),
    unread: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Writes the index of a shard from its samples in order and, last, its manifest, which is returned."""
    starts = accumulate((len(sample.media) for sample in measured), initial=0)
    samples = np.array([(0, sample.kind, len(sample.media), sample.json[1], sample.json[0], start)
                        for sample, start in zip(measured, starts, strict=False)], SAMPLE)
    media = np.array([row for sample in measured for row in sample.media], MEDIA)
    _replace_npz(sidecar(tar, "index.npz"), samples=samples, media=media)
    kinds = np.bincount(samples["kind"], minlength=len(KINDS))
    manifest = {
        "version": VERSION, "name": tar.name, "bytes": tar.stat().st_size, "sha256": digest,
        "samples": len(samples), "kinds": dict(zip(KINDS, kinds.tolist(), strict=True)),
        "media_bytes": int(media["size"].sum()), "frames": int(media["frames"].sum()),
        "seconds": round(float(media["duration"].sum()), 3),
        "text_bytes": sum(sample.text_bytes for sample in measured),
        "bad": [*bad, *(one for sample in measured for one in sample.bad)],
        **({"unread": dict(unread)} if unread else {}),
    }
    replace_file(sidecar(tar, "manifest.json"), json.dumps(manifest, indent=1).encode())
    return manifest


def file_digest(file: io.BufferedReader) -> str:
    """The sha256 of the rest of an open file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _runs(tar: Path, unread: Counter[str]) -> Iterator[tuple[str, list[tuple[str, Place]]]]:
    """Each sample's key and its members' extensions and places; extensions that are never read are counted."""
    seen: set[str] = set()
    try:
        with tarfile.open(tar, "r:") as archive:
            members = ((*named, member) for member in archive if member.isreg() and (named := split_name(member.name)))
            for key, run in groupby(members, lambda named: named[0]):
                if key in seen:
                    raise AuroraError(f"{tar}: the members of sample {key!r} do not stand together")
                seen.add(key)
                places = [(extension, (member.offset_data, member.size)) for _, extension, member in run]
                unread.update(extension for extension, _ in places if not is_read(extension))
                yield key, places
    except tarfile.TarError as error:
        raise AuroraError(f"{tar} is not a whole tar: {error}") from error


def _checked(key: str, members: Sequence[tuple[str, Place]]) -> dict[str, Place]:
    """The places of a foreign sample's members by extension. BadSample when two have the same extension."""
    check_foreign_key(key)
    places = dict(members)
    if len(places) < len(members):
        (twice, _), = Counter(extension for extension, _ in members).most_common(1)
        raise BadSample("member", f"{key}.{twice} stands twice in the sample")
    if "json" not in places:
        raise BadSample("json", "there is no json member, which says what the others are")
    return places


def measure_sample(key: str, members: Mapping[str, Place], read: Callable[[Place], bytes]) -> MeasuredSample:
    """Measures the members of a sample; `members` are their places by extension. BadSample when the record does not say
    what they are."""
    bad: list[dict[str, str]] = []
    record = parse_record(read(members["json"]))
    check_members(record, members)
    rows: list[tuple[Any, ...]] = []
    for extension in record.media:
        at, size = members.get(extension, (0, 0))
        facts: tuple[float, ...] = (0, 0, 0, 0.0, 0.0, 0.0)  # from height to duration in MEDIA
        try:
            if not at:
                raise BadSample("missing", f"no member {key}.{extension}")
            raw = read((at, size))
            if record.kind != VIDEO:
                facts = (*image_shape(raw), *facts[2:])
            else:
                with bad_sample("video"):
                    clip, shape = measure(raw, record.start, record.stop), video_shape(raw)
                    facts = (*shape, clip.frames, clip.first, clip.last, clip.duration)
        except BadSample as error:
            bad.append(_found(key, error))
        rows.append((at, size, *facts))
    text_bytes = sum(len(turn.question.encode()) + len((turn.answer or "").encode()) for turn in record.turns)
    return MeasuredSample(members["json"], record.kind, rows, text_bytes, bad)


def _found(key: str, error: BadSample) -> dict[str, str]:
    return {"key": repr(key)[1:-1], "reason": error.reason, "detail": error.detail}  # it may not be text
