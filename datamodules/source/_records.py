"""What sources have in common whose annotations are records that name media, or hold them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import AuroraError, BadSample
from aurora.interfaces import Entry, Source

from ..shards.format import ShardSample
from ._lines import entries, fault_of, place_of, record_at, weight_of
from ._media import VIDEOS, Medium, content, find, media, size_of
from ._turns import Conversation


class Told(NamedTuple):
    """What a record says."""

    turns: Conversation
    media: Sequence[Any] = ()
    """Paths, bytes, or mappings with either."""
    below: str = "."
    """The folder that paths start from."""
    span: tuple[float, float] | None = None
    """Seconds of the video that are meant."""


class RecordSource(Source):
    """Streams records; a part says in `tell` what each means."""

    by_place = False
    """Whether lines of JSON hold the media too, and are told by where they stand."""

    def __init__(self, folder: Path, annotations: str | Sequence[str]) -> None:
        self._folder = folder
        names = [annotations] if isinstance(annotations, str) else annotations
        self._names = [found for name in names for found in annotation_names(folder, name)]
        self._files = [annotation_file(folder, name) for name in self._names]

    def annotations(self) -> Sequence[Path]:
        return self._files

    def entries(self) -> Iterator[Entry]:
        for name, path in zip(self._names, self._files, strict=True):
            yield from entries(path, name, by_place=self.by_place)

    def size(self, entry: Entry) -> int:
        place = place_of(entry)
        if place is not None:
            return weight_of(self._folder, place)
        try:
            told = self.tell(self._record(entry), "")
        except BadSample:
            return 0
        return sum(size_of(self._folder, told.below, one) for one in told.media)

    def sample(self, entry: Entry, key: str) -> ShardSample:
        record = self._record(entry)
        told = self.tell(record, key)
        told_id = record.get("id")
        base = {"id": key if told_id is None else str(told_id), "conversations": told.turns}
        return with_media(key, base, media(self._folder, told.below, told.media), told.span)

    @abstractmethod
    def tell(self, record: Mapping[str, Any], key: str) -> Told:
        """What a record means. BadSample when it makes no sense."""

    def _record(self, entry: Entry) -> Mapping[str, Any]:
        place = place_of(entry)
        try:
            record = entry if place is None else record_at(self._folder, place)
        except ValueError as error:
            raise BadSample("json", f"{place}: {error}") from error
        if not isinstance(record, Mapping):
            raise BadSample("json", f"{place}: no object")
        wrong = fault_of(record)
        if wrong is not None:
            raise BadSample("json", wrong)
        return record


def annotation_names(folder: Path, name: str) -> list[str]:
    """The files that a name with `*` stands for, in order, or the name alone. AuroraError when there are none."""
    if "*" not in name:
        return [name]
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(name))
    if not found:
        raise AuroraError(f"annotations: no file {name!r} below {folder}")
    return found


def annotation_file(folder: Path, name: str) -> Path:
    """A file of annotations below the dataset's folder. AuroraError when it is not there."""
    try:
        path = find(folder, ".", name)
    except BadSample as error:
        raise AuroraError(f"annotations: {error.detail} below {folder}") from error
    if not path.is_file():
        raise AuroraError(f"annotations: {path} is no file")
    return path


def with_media(
    key: str, record: Mapping[str, Any], media: Sequence[Medium], span: tuple[float, float] | None = None
) -> ShardSample:
    """The sample of a record and its media, under extensions that say what they are."""
    extensions = [content(one) for one in media]
    videos = [extension for extension in extensions if extension in VIDEOS]
    if (videos and len(media) > 1) or (span is not None and not videos):
        raise BadSample("media", f"{len(media)} media, {len(videos)} of them videos, with range {span}: a sample has "
                                 "pictures or one video, and only a video has a range")
    if videos:
        ranged = {} if span is None else {"range": list(span)}
        return ShardSample(key, {**record, "video": videos[0], **ranged}, {videos[0]: media[0]})
    if len(media) == 1:
        return ShardSample(key, {**record, "image": extensions[0]}, {extensions[0]: media[0]})
    if not media:
        return ShardSample(key, record)
    names = [f"{number}.{extension}" for number, extension in enumerate(extensions)]
    return ShardSample(key, {**record, "image": names}, dict(zip(names, media, strict=True)))
