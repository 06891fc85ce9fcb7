"""Sources whose annotations are records that name media, or hold them; conversations in the forms that they use."""

import base64
import hashlib
import os
import stat
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.interfaces import Entry, Source
from aurora.media import PICTURES, VIDEOS, media_type
from aurora.records import FAULT, PLACE, entries, record_at

from ..shards.format import ShardSample

Conversation = list[dict[str, str]]
Medium = bytes | Path
NAMED = (*PICTURES, "jpeg", "jfif", "tif", *VIDEOS)
"""Extensions of names that are taken for those of media."""
_MOST_PICTURES = 4096  # of a folder that stands for a video
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "bot": "gpt",
             "chatgpt": "gpt", "system": "system"}


class Parsed(NamedTuple):
    """What a record says."""

    turns: Conversation
    media: Sequence[Any] = ()  # paths, bytes, or mappings with either
    below: str = "."  # the folder that paths start from
    span: tuple[float, float] | None = None  # seconds of the video that are meant


class RecordSource(Source):
    """Streams records; a part says in `parse` what each means."""

    by_place = False
    """Whether lines of JSON hold the media too, and are identified by their place."""

    def __init__(self, *, folder: Path, annotations: str | Sequence[str]) -> None:
        self._folder = folder
        self._files = annotation_files(folder, annotations)

    def annotations(self) -> Sequence[Path]:
        return [path for _, path in self._files]

    def entries(self) -> Iterator[Entry]:
        for name, path in self._files:
            yield from entries(path, name, by_place=self.by_place)

    def size(self, entry: Entry) -> int:
        if PLACE in entry:
            return int(entry[PLACE][-1])
        try:
            parsed = self.parse(self._record(entry), "")
        except BadSample:
            return 0
        return sum(_size(self._folder, parsed.below, one) for one in parsed.media)

    def sample(self, entry: Entry, key: str) -> ShardSample:
        record = self._record(entry)
        parsed = self.parse(record, key)
        name = record.get("id")
        base = {"id": key if name is None else str(name), "conversations": parsed.turns}
        found = _media(self._folder, parsed.below, parsed.media)
        tags = sum(turn["value"].count("<image>") for turn in parsed.turns if turn["from"] == "human")
        if len(parsed.media) == 1 < len(found) != tags:  # the frames of a video, for which some write one <image>
            base["conversations"] = [{**turn, "value": turn["value"].replace("<image>", "<video>")}
                                     if turn["from"] == "human" else turn for turn in parsed.turns]
        return with_media(key, base, found, parsed.span)

    @abstractmethod
    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        """What a record means. BadSample when it makes no sense."""

    def _record(self, entry: Entry) -> Mapping[str, Any]:
        place = entry.get(PLACE)
        try:
            record = entry if place is None else record_at(self._folder, place)
        except ValueError as error:
            raise BadSample("json", f"{place}: {error}") from error
        if FAULT in record:
            raise BadSample("json", record[FAULT])
        return record


def annotation_files(folder: Path, names: str | Sequence[str]) -> list[tuple[str, Path]]:
    """Names and paths of files below the dataset's folder; a name with `*` stands for several, in order. AuroraError
    when one is not there."""
    files = []
    for name in [names] if isinstance(names, str) else names:
        found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(name)) if "*" in name else [name]
        if not found:
            raise AuroraError(f"annotations: no file {name!r} below {folder}")
        for one in found:
            try:
                path = find(folder, ".", one)
            except BadSample as error:
                raise AuroraError(f"annotations: {error.detail} below {folder}") from error
            if not path.is_file():
                raise AuroraError(f"annotations: {path} is not a file")
            files.append((one, path))
    return files


def find(folder: Path, below: str, name: Any) -> Path:
    """The file or folder that annotations name. BadSample when it is missing or does not lie below `folder`."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadSample("path", f"{name!r} is not a path")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "://" in name:
        raise BadSample("path", f"{name!r} does not stay below the dataset's folder")
    path = folder / below / name
    try:
        facts = path.lstat()
        # Links are followed once per folder; only a file that is itself a link is asked again.
        linked = stat.S_ISLNK(facts.st_mode)
        real = os.path.realpath(path) if linked else os.path.join(_real(path.parent), path.name)
        mode = (path.stat() if linked else facts).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadSample("missing", f"no file {os.path.join(below, name)!r}") from None
    except OSError as error:
        raise BadSample("missing", f"{name!r}: {error.strerror}") from error
    if not real.startswith(_real(folder) + os.sep):
        raise BadSample("path", f"{name!r} leads out of the dataset's folder")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise BadSample("path", f"{name!r} is neither a file nor a folder")  # opening a pipe would wait forever
    return path


@lru_cache(maxsize=4096)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)


def _size(folder: Path, below: str, name: Any) -> int:
    """Bytes of what annotations name; 0 for what is not there."""
    try:
        path = find(folder, below, name)
        return sum(entry.stat().st_size for entry in os.scandir(path)) if path.is_dir() else path.stat().st_size
    except (BadSample, OSError):
        return 0


def _media(folder: Path, below: str, given: Iterable[Any]) -> list[Medium]:
    """Media given as paths, as bytes, as `data:` URIs, or in a mapping ({"bytes", "path"}, as Hugging Face's datasets
    do); a folder that stands for a video is the pictures in it."""
    found: list[Medium] = []
    for one in given:
        if isinstance(one, Mapping):
            one = one.get("bytes") or one.get("path")
        elif isinstance(one, str) and one.startswith("data:"):
            one = from_base64(one)
        medium = bytes(one) if isinstance(one, (bytes, bytearray)) else find(folder, below, one)
        found += _pictures(medium) if isinstance(medium, Path) and medium.is_dir() else [medium]
    return found


def _pictures(path: Path) -> list[Path]:
    """The files of a folder that holds the frames of a video, in the order of the numbers in their names."""
    files = (entry for entry in path.iterdir() if entry.is_file() and not entry.is_symlink())
    found = sorted(files, key=lambda file: (int("".join(filter(str.isdigit, file.name)) or 0), file.name))
    if not 0 < len(found) <= _MOST_PICTURES:
        raise BadSample("missing", f"the folder {path.name!r} holds {len(found)} files, not 1 to {_MOST_PICTURES} "
                                   "frames")
    return found


def joined(left: Iterable[tuple[Any, Any]], right: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Every (id, value) of `left` with the values of `right` that have its id, both in their order; `right` is held in
    memory. Ids are numbers in one list and strings in the other, in some datasets."""
    found: dict[str, list[Any]] = defaultdict(list)
    for key, value in right:
        found[str(key)].append(value)
    for key, value in left:
        yield key, value, found.get(str(key), [])


def from_base64(text: Any) -> bytes:
    """What a text in base64 holds, with or without line ends and `data:image/png;base64,` in front of it."""
    if not isinstance(text, str):
        raise BadSample("base64", f"{type(text).__name__} is not text")
    with bad_sample("base64", (ValueError,)):
        return base64.b64decode("".join(text[text.startswith("data:") and text.find(",") + 1:].split()), validate=True)


def looks_like_media(value: Any) -> bool:
    """Whether a value names or holds a picture or a video, or several."""
    if isinstance(value, Mapping):
        value = [value.get("bytes"), value.get("path")]
    if isinstance(value, list):
        return any(map(looks_like_media, value))
    return isinstance(value, bytes) or (isinstance(value, str) and (
        value.startswith(("data:image/", "data:video/"))
        or ("\n" not in value and value.lower().rpartition(".")[2] in NAMED and "." in value)))


def with_media(
    key: str, record: Mapping[str, Any], media: Sequence[Medium], span: tuple[float, float] | None = None
) -> ShardSample:
    """The sample of a record and its media, under extensions that say what they are."""
    with bad_sample("content"):
        types = [media_type(one) for one in media]
    extensions, videos = [one.extension for one in types], [one for one in types if one.moving]
    if (videos and len(media) > 1) or (span is not None and not videos):
        raise BadSample("media", f"{len(media)} media, {len(videos)} of them videos, with range {span}: a sample has "
                                 "pictures or one video, and only a video has a range")
    if not media:
        return ShardSample(key, record)
    names = extensions if len(media) == 1 else [f"{number}.{found}" for number, found in enumerate(extensions)]
    named = {"video" if videos else "image": names if len(media) > 1 else names[0]}
    ranged = {} if span is None else {"range": list(span)}
    return ShardSample(key, {**record, **named, **ranged}, dict(zip(names, media, strict=True)))


def conversation(given: Any) -> Conversation:
    """[{"from", "value"}, …] from a list of those, or of {"role", "content"}; BadSample for what makes no sense.

    What a system says is put before the next question. What is answered before anybody asked is left out, as is a
    question at the end that nobody answers.
    """
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise BadSample("turns", f"conversations are {type(given).__name__}, not a list of turns")
    turns: Conversation = []
    system = ""
    for number, turn in enumerate(given):
        if not isinstance(turn, Mapping):
            raise BadSample("turns", f"turn {number} is not an object")
        said_by, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(said_by, str) or said_by not in _SPEAKERS or not isinstance(text, str):
            raise BadSample("turns", f"turn {number}: from {said_by!r}, {type(text).__name__}; speakers are "
                                     f"{', '.join(_SPEAKERS)}, and what they say is a text")
        speaker = _SPEAKERS[said_by]
        if speaker == "system":
            system += text + "\n"
        elif not turns and speaker == "gpt":
            continue
        elif turns and turns[-1]["from"] == speaker:
            raise BadSample("turns", f"turn {number} is from {speaker} again")
        elif speaker == "gpt" and not text.strip():
            raise BadSample("text", f"turn {number} is an empty answer")
        else:
            turns.append({"from": speaker, "value": system + text})
            system = ""
    if len(turns) % 2:
        turns.pop()
    if not turns:
        raise BadSample("turns", "no question is answered")
    return turns


def asked(question: Any, answer: Any) -> Conversation:
    """One question and its answer. BadSample when one is not a text."""
    return [{"from": "human", "value": text(question, "question")}, {"from": "gpt", "value": text(answer, "answer")}]


def text(given: Any, what: str) -> str:
    """A text that is not empty, or a number as one. BadSample for anything else."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or not given.strip():
        raise BadSample("text", f"{what} is {str(given)[:80]!r}, not a text")
    return given.strip()


def agreed(answers: Any) -> Any:
    """What most of several people answered, the first of those that are equally many; a single answer as it is."""
    if not isinstance(answers, Sequence) or isinstance(answers, str) or not answers:
        return answers
    return Counter(map(str, answers)).most_common(1)[0][0]


def chosen(options: Sequence[str], key: str) -> str:
    """One of several, the same for the same key, each about equally often."""
    return options[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(options)]
