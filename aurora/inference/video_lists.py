"""Very many videos, as they are given: tars of WebDataset, lists, folders and globs, cut into input shards."""

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import AuroraError
from aurora.inference.index import find_videos
from aurora.media import VIDEOS
from aurora.records import FAULT, RecordsBroken, records

LISTS = (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


class Entry(NamedTuple):
    """One video of an input shard, or why there is none."""

    id: str
    video: str  # as the input names it
    path: str = ""  # where it can be read
    question: str | None = None
    start: float = 0.0
    stop: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class InputShard:
    """What becomes one output file of this name: the videos of a tar, or those that are listed."""

    name: str
    tar: str | None = None
    entries: tuple[Entry, ...] = ()

    def digest(self) -> str:
        """SHA-256 of what is listed, and of the size and time of every file."""
        files = [entry.path for entry in self.entries] if self.tar is None else [self.tar]
        return hashlib.sha256(json.dumps([self.entries, *map(_stamp, files)]).encode()).hexdigest()


def input_shards(inputs: Sequence[str], *, videos_per_file: int, column: str = "video", without: Path
                 ) -> list[InputShard]:
    """The input shards of tars, lists of videos, videos, folders and globs. AuroraError for anything else."""
    listed: dict[str, list[Entry]] = {}
    tars: list[str] = []
    for path in _expanded(inputs):
        if path.suffix.lower() == ".tar":
            tars.append(str(path.resolve()))
        elif path.is_dir():
            listed[str(path)] = [Entry(video.name, str(Path(video.path).relative_to(path.resolve())), video.path)
                                 for video in find_videos(path, without=without)]
        elif path.suffix.lower() in LISTS:
            listed[str(path)] = _told_apart(_listed(path, column))
        elif path.suffix.lower().lstrip(".") in (*VIDEOS, "mov", "m4v", "mpeg"):
            listed.setdefault("videos", []).append(Entry(path.stem, str(path), str(path.resolve())))
        else:
            raise AuroraError(f"{path} is no video, no folder of videos, no .tar of WebDataset and no list "
                              f"({', '.join(LISTS)})")
    parts = [(source, number, tuple(entries[number:number + videos_per_file]), len(entries) > videos_per_file)
             for source, entries in listed.items() for number in range(0, len(entries), videos_per_file)]
    stems = _stems([*tars, *listed])
    made = [InputShard(stems[tar], tar) for tar in tars]
    made += [InputShard(f"{stems[source]}-{number // videos_per_file:05d}" if several else stems[source], None, entries)
             for source, number, entries, several in parts]
    if not made:
        raise AuroraError(f"{', '.join(inputs)}: no video is listed there")
    return made


def of_tar(tar: str, scratch: Path) -> Iterator[Entry]:
    """The samples of a tar that have a video, which lies in a file until the next sample is asked for."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with open(tar, "rb") as file:
        for number, sample in enumerate(group_by_keys(tar_file_expander([{"url": tar, "stream": file}]))):
            extension = next((key for key in sample if key.rpartition(".")[2] in VIDEOS), None)
            if extension is None:
                continue
            key = sample["__key__"]
            path = scratch / f"{number}.{extension.rpartition('.')[2]}"
            path.write_bytes(sample[extension])
            yield _entry(sample.get("json", b"{}"), Entry(key, f"{key}.{extension}", str(path)))
            path.unlink()


def _entry(raw: bytes, entry: Entry) -> Entry:
    """The entry with the range that the record of its sample names."""
    try:
        return _ranged(entry, json.loads(raw).get("range"))
    except (ValueError, AttributeError, RecursionError) as error:
        return entry._replace(failure=f"its record cannot be read: {error}")


def _ranged(entry: Entry, given: Any) -> Entry:
    """The entry with the seconds between which its video is meant. ValueError for what is not a range."""
    if given is None:
        return entry
    try:
        start, stop = given
        right = 0 <= start < stop
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(f"range {given} is not [start, stop] in seconds")
    return entry._replace(start=float(start), stop=float(stop))


def _stamp(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    return None


def _expanded(inputs: Iterable[str]) -> Iterator[Path]:
    """The paths that globs stand for, each once. AuroraError for what is not there."""
    seen = set()
    for word in inputs:
        found = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        if not found:
            raise AuroraError(f"{word} does not exist")
        for path in map(Path, found):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _listed(path: Path, column: str) -> Iterator[tuple[Entry, bool]]:
    """The entries of a list, and whether each has an id of its own; its paths are relative to its folder."""
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        rows: Iterable[tuple[str, Mapping[str, Any]]] = (
            (f"line {number}", {column: line.strip()}) for number, line in enumerate(lines, 1) if line.strip())
    else:
        rows = records(path)
    try:
        for where, record in rows:
            yield _of_record(path, where, record, column), "id" in record
    except RecordsBroken as error:
        yield Entry(f"{path.stem}: end", str(path), failure=str(error)), True


def _told_apart(entries: Iterable[tuple[Entry, bool]]) -> list[Entry]:
    """The entries; where several without an id of their own are about one video, their ids are numbered."""
    made = list(entries)
    counts, numbers = Counter(entry.id for entry, named in made if not named), Counter[str]()
    for place, (entry, named) in enumerate(made):
        if not named and counts[entry.id] > 1:
            numbers[entry.id] += 1
            made[place] = entry._replace(id=f"{entry.id}#{numbers[entry.id]}"), named
    return [entry for entry, _ in made]


def _of_record(path: Path, where: str, record: Mapping[str, Any], column: str) -> Entry:
    video, question = record.get(column), record.get("question")
    identity = record.get("id", video if isinstance(video, str) else where)
    if FAULT in record or not isinstance(video, str) or not video:
        failure = record.get(FAULT) or f"no path of a video under {column!r}; there are {', '.join(record)}"
        return Entry(str(identity), where, failure=f"{path.name}, {where}: {failure}")
    if "://" in video:
        return Entry(str(identity), video, failure=f"{path.name}, {where}: it is an address; lists name files")
    entry = Entry(str(identity), video, str((path.parent / video).resolve()),
                  question if isinstance(question, str) and question.strip() else None)
    try:
        return _ranged(entry, record.get("range"))
    except ValueError as error:
        return entry._replace(failure=f"{path.name}, {where}: {error}")


def _stems(sources: Sequence[str]) -> dict[str, str]:
    """Names of output files; those that would be the same carry a digest of where they come from."""
    stems = {source: Path(source).resolve().stem.lstrip(".") or "videos" for source in sources}
    counts = Counter(stem.casefold() for stem in stems.values())
    return {source: stem if counts[stem.casefold()] == 1
            else f"{stem}~{hashlib.sha256(os.fsencode(Path(source).resolve())).hexdigest()[:8]}"
            for source, stem in stems.items()}
