"""Annotation files and videos of a benchmark's folder; whatever makes no sense is an error that names the record."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from aurora.errors import AuroraError
from aurora.evaluation.prompts import MAX_OPTIONS
from aurora.interfaces import Item, Items
from aurora.records import FAULT, items, records

EXTENSIONS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
_ON_LINES = r"^[ \t]*\(?([{letters}])[).:][ \t]*(.*?)[ \t]*$"
_IN_A_ROW = r"(?<!\S)\(([{letters}])\)[ \t]*(.*?)[ \t]*(?=\s\([{letters}]\)|$)"
_LABELS = [re.compile(form.replace("{letters}", letters), re.MULTILINE)
           for form in (_ON_LINES, _IN_A_ROW) for letters in ("A-Z", "a-z")]


class Row(NamedTuple):
    """One record of an annotation file, and where it stands."""

    where: str
    fields: Mapping[str, Any]

    def error(self, problem: str) -> AuroraError:
        """An error about this record."""
        return AuroraError(f"{self.where}: {problem}")

    def text(self, key: str) -> str:
        """A text that is not empty; a number counts as one."""
        value = self.fields.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key!r} must be a text that is not empty, not {value!r}")
        return value

    def options(self, key: str) -> tuple[str, ...]:
        """The texts of a choice: two or more, and no more than there are letters."""
        found = self.texts(key, least=2)
        if len(found) > MAX_OPTIONS:
            raise self.error(f"{key!r} has {len(found)} texts, but a choice has at most {MAX_OPTIONS}, one per letter")
        return found

    def texts(self, key: str, least: int = 1) -> tuple[str, ...]:
        """A list of texts; in a table also one that is written as a list in its cell."""
        given = value = self.fields.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _list_in_a_cell(value)
        if not isinstance(value, (list, tuple)) or len(value) < least or \
                not all(isinstance(one, (str, int, float)) for one in value):
            raise self.error(f"{key!r} must be a list of {least} or more texts, not {given!r}")
        return tuple(str(one) for one in value)

    def number(self, key: str) -> float:
        """A number that is not below 0."""
        value: Any = self.fields.get(key)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not 0 <= number < float("inf"):
            raise self.error(f"{key!r} must be a number that is not negative, not {value!r}")
        return number

    def whole_number(self, key: str) -> int:
        """A whole number that is not below 0."""
        number = self.number(key)
        if number != int(number):
            raise self.error(f"{key!r} must be a whole number, not {self.fields.get(key)!r}")
        return int(number)

    def option_number(self, key: str, options: Sequence[str]) -> int:
        """The index of an option."""
        index = self.whole_number(key)
        if index >= len(options):
            raise self.error(f"{key!r} is {index}, but there are {len(options)} options")
        return index

    def seconds(self, key: str) -> float:
        """Seconds: a number, or a clock such as 00:03:10."""
        value = self.fields.get(key)
        if isinstance(value, str) and ":" in value:
            if not re.fullmatch(r"\d+(:[0-5]?\d){1,2}", value.strip()):
                raise self.error(f"{key!r} must be seconds or a clock such as 00:03:10, not {value!r}")
            return float(sum(int(part) * 60**place for place, part in enumerate(reversed(value.strip().split(":")))))
        return self.number(key)

    def span(self, start: str, stop: str) -> tuple[float, float | None]:
        """Seconds between which something lies; the whole video where `start` is not given."""
        if self.fields.get(start) is None:
            return 0.0, None
        first, last = self.seconds(start), self.seconds(stop)
        if last <= first:
            raise self.error(f"nothing lies between {start!r} {first:g} and {stop!r} {last:g}")
        return first, last

    def letter(self, key: str, options: Sequence[str]) -> int:
        """The index of the option that a letter names."""
        value = self.fields.get(key)
        letter = value.strip().strip("().").upper() if isinstance(value, str) else ""
        index = ord(letter) - ord("A") if len(letter) == 1 else -1
        if not 0 <= index < len(options):
            raise self.error(f"{key!r} must be the letter of one of {len(options)} options, not {value!r}")
        return index

    def option(self, key: str, options: Sequence[str]) -> int:
        """The index of the first option that has this very text."""
        value = str(self.fields.get(key))
        if value not in options:
            raise self.error(f"{key!r} is {value!r}, which is not one of the options {list(options)}")
        return options.index(value)

    def rows(self, key: str) -> "list[Row]":
        """The records of a list in this one."""
        value = self.fields.get(key)
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, Mapping) for one in value):
            raise self.error(f"{key!r} must be a list of objects, not {str(value)[:80]!r}")
        return [Row(f"{self.where}, {key} {number}", one) for number, one in enumerate(value, 1)]


def _list_in_a_cell(text: str) -> Any:
    """The list that a cell of a table holds as JSON, or as Python writes one; the text where it holds none."""
    import ast

    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def annotations(folder: Path, given: str | None, *known: str) -> list[Path]:
    """The annotation files: those of the option `annotations`, or the first of the known names that are there.

    Names may hold wildcards. AuroraError that lists the names looked for when there are none.
    """
    if not folder.is_dir():
        raise AuroraError(f"{folder} is not a folder")
    if given is not None and (not given.strip("./") or PurePosixPath(given).is_absolute() or ".." in Path(given).parts):
        raise AuroraError(f"benchmark.annotations {given!r} must name files inside of the folder {folder}")
    for name in (given,) if given is not None else known:
        try:
            found = sorted(path for path in folder.glob(name) if path.is_file())
        except (ValueError, OSError) as error:
            raise AuroraError(f"benchmark.annotations {name!r} cannot be looked for in {folder}: {error}") from error
        if found:
            return found
    wanted = given if given is not None else " or ".join(known)
    raise AuroraError(f"{folder} has no {wanted}; set benchmark.annotations to where the annotations are in it")


def rows(path: Path, key: str | None = None) -> Iterator[Row]:
    """Every record of a file, or of the list that its one object holds under a key."""
    found = records(path) if key is None else ((f"{key} {n}", one) for n, one in enumerate(items(path, key), 1))
    for where, record in found:
        if FAULT in record:
            raise AuroraError(f"{path}, {where}: {record[FAULT]}")
        yield Row(f"{path}, {where}", record)


def whole(path: Path) -> Row:
    """The one object that a file of JSON is."""
    try:
        read = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AuroraError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(read, dict):
        raise AuroraError(f"{path} must hold an object of JSON, not {str(read)[:80]!r}")
    return Row(str(path), read)


class Videos:
    """Finds the videos of a folder, whatever their extension: below `given`, or the known folders in their order.

    In the places `pictures` a video is a folder of pictures.
    """

    def __init__(self, folder: Path, given: str | None, *known: str, pictures: Sequence[str] = ()) -> None:
        self.folder = folder
        self.places = (given,) if given is not None else known
        self.pictures = (given,) if given is not None and pictures else pictures

    def find(self, row: Row, *names: str) -> str:
        """The path in the folder of the first of these names that is there; the first one looked for where none is."""
        names = tuple(PurePosixPath(name.strip()).as_posix() for name in names)
        for name in names:
            if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise row.error(f"the video {name!r} must be a path inside of the folder")
        tried = [PurePosixPath(place, form).as_posix() for place in self.places for name in names
                 for form in _forms(name)]
        tried += [PurePosixPath(place, name).as_posix() for place in self.pictures for name in names]
        try:
            return next((path for path in tried if (self.folder / path).exists()), tried[0])
        except (OSError, ValueError) as error:  # a name that is too long
            raise row.error(f"the video {names[0][:80]!r} cannot be looked for: {error.__class__.__name__}, "
                            f"{getattr(error, 'strerror', None) or error}") from error


def _forms(name: str) -> list[str]:
    """The name, and the same with other extensions; one without an extension is never looked for as it is."""
    path = PurePosixPath(name)
    own = [name] if path.suffix.lower() in {extension.lower() for extension in EXTENSIONS} else []
    stem = path.with_suffix("").as_posix() if own else name
    return [*own, *(stem + extension for extension in EXTENSIONS if stem + extension not in own)]


def collect(folder: Path, made: Iterable[Item]) -> Items:
    """The items, and which of their videos are missing. AuroraError when there are none, or two have one id."""
    found = tuple(made)
    if not found:
        raise AuroraError(f"{folder} asks no question with these options")
    twice = [id for id, count in Counter(item.id for item in found).items() if count > 1]
    if twice:
        raise AuroraError(f"{folder}: the id {twice[0]!r} stands {Counter(item.id for item in found)[twice[0]]} times")
    videos = dict.fromkeys(item.video for item in found)
    return Items(found, tuple(video for video in videos if not (folder / video).exists()))


def lettered(text: str) -> tuple[str, ...]:
    """The options that stand in a question on lines of their own, such as "(A) red" or "b. blue", or in a row, as in
    "(A) red (B) blue"; none where their letters do not run from A."""
    for label in _LABELS:
        found = label.findall(text)
        for first in range(len(found) - 1, -1, -1):
            letters = "".join(letter for letter, _ in found[first:]).upper()
            if len(letters) > 1 and "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters):
                return tuple(option for _, option in found[first:])
    return ()


def without_label(option: str) -> str:
    """ "red" of "A. red"."""
    return re.sub(r"^\s*\(?[A-Z][).:]\s*", "", option)
