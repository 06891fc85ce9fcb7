"""Records of files, streamed: JSON arrays, JSON lines, CSV, TSV and Parquet, in UTF-8 with or without a BOM.

A record is an object of JSON. What cannot be read as one, names a key twice, or holds text that is not UTF-8 is given
as a `fault`, so that it is counted where the others are used; a file that breaks off in the middle raises RecordsBroken
after what stands before.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError

Record = Mapping[str, Any]
FAULT = "$fault"
"""Key of a record that cannot be read, and says why."""
PLACE = "$place"
"""Key of a record that says where it stands, for `record_at`; last about how many bytes it has, media included."""
_BLOCK = 1 << 20
_LARGEST = 1 << 28  # characters of one value, so that a quote that is never closed does not fill the memory
_JSON = (".json", ".jsonl", ".ndjson")
_SKIPPED = re.compile(r"[\s,:]*")  # between values; what is missing of it takes nothing away
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class RecordsBroken(AuroraError):
    """A file of records whose rest cannot be read; what stands before was given."""


def fault(detail: str) -> Record:
    """A record that cannot be read."""
    return {FAULT: detail}


def parse(raw: bytes) -> dict[str, Any]:
    """One record of JSON. ValueError when it is not an object, names a key twice, or holds text that is not UTF-8."""
    text = raw.decode("utf-8-sig")
    try:
        return _checked(_STRICT.decode(text), text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def records(path: Path) -> Iterator[tuple[str, Record]]:
    """Where each record of a file stands, such as "line 3", and the record. AuroraError for a file of another kind."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        from aurora import parquet  # pyarrow is an extra

        _check_columns(path, parquet.columns(path))
        for number, row in enumerate(parquet.rows(path), 1):
            yield f"row {number}", fault(str(row)) if isinstance(row, UnicodeDecodeError) else row
    elif kind in (".csv", ".tsv"):
        yield from _rows(path, "," if kind == ".csv" else "\t")
    elif kind not in _JSON:
        raise AuroraError(f"{path}: records are read from .json, .jsonl, .ndjson, .csv, .tsv or .parquet files")
    elif _is_lines(path):
        for number, _, line in _lines(path):
            try:
                yield f"line {number}", parse(line)
            except ValueError as error:
                yield f"line {number}", fault(str(error))
    else:
        yield from ((f"entry {number}", item) for number, item in enumerate(items(path), 1))


def entries(path: Path, name: str, *, by_place: bool = False) -> Iterator[Record]:
    """The records of a file, or where they stand if they carry their media: rows of Parquet with a column of bytes,
    and with `by_place` lines of JSON. AuroraError for a file of another kind."""
    if path.suffix.lower() == ".parquet":
        from aurora import parquet

        if parquet.holds_bytes(path):
            _check_columns(path, parquet.columns(path))
            yield from ({PLACE: [name, *place]} for place in parquet.places(path))
            return
    elif by_place and path.suffix.lower() in _JSON and _is_lines(path):
        yield from ({PLACE: [name, at, len(line)]} for _, at, line in _lines(path))
        return
    for where, record in records(path):
        yield fault(f"{name}, {where}: {record[FAULT]}") if FAULT in record else record


def record_at(folder: Path, place: Sequence[Any]) -> Record:
    """The record at a place. ValueError when it cannot be read, AuroraError when the file is not what it was."""
    name, *where = place
    if Path(name).suffix.lower() == ".parquet":
        from aurora import parquet

        return parquet.row(folder / name, *where[:2])
    with folder.joinpath(name).open("rb") as file:
        file.seek(where[0])
        return parse(file.read(where[1]))


def items(path: Path, key: str | None = None) -> Iterator[Record]:
    """The records of the array that a JSON file is, or that its object holds under a key."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        stream = _Stream(file)
        yield from stream.array() if key is None else stream.arrays_of(key)
        if stream.next():
            raise stream.broken("more stands behind the end")


def _check_columns(path: Path, names: Iterable[str]) -> None:
    """AuroraError when two columns of a table have one name."""
    counts = Counter(names)
    if PLACE in counts:
        raise AuroraError(f"{path} has a column of the name {PLACE!r}, which is reserved; rename it")
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise AuroraError(f"{path} has several columns of the name {', '.join(map(repr, twice))}; rename all but one")


def _is_lines(path: Path) -> bool:
    """Whether a file of JSON is one record per line. AuroraError for an object over several lines, of which every line
    would count as a bad one."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if _Stream(file).next() == "[":
            return False
    first = next((line for _, _, line in _lines(path)), b"")
    if first.rstrip().endswith((b"{", b"[", b",", b":")):
        raise AuroraError(f"{path} is one JSON object over several lines; records are a list of objects, or objects "
                          "with a line each")
    return True


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of every line that is not blank."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, at, line
            at += len(line)


def _rows(path: Path, delimiter: str) -> Iterator[tuple[str, Record]]:
    # A cell may hold a long caption or a serialised list.
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file, delimiter=delimiter, restkey=FAULT, strict=True)
        try:
            columns = rows.fieldnames or ()
            _check_utf8(delimiter.join(columns))
        except (csv.Error, UnicodeDecodeError) as error:
            raise AuroraError(f"{path}, line 1: {error}; a table is text in UTF-8 and begins with the names of its "
                              "columns") from error
        _check_columns(path, filter(None, columns))  # spreadsheets leave some columns without a name
        while True:
            try:
                row: Record = next(rows)
                if row.get(FAULT):
                    row = fault("more cells than columns")
                _check_utf8(delimiter.join(map(str, row.values())))
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                if "end of data" in str(error):
                    raise RecordsBroken(f"{path}: a quote is not closed before the end of the file; the rows that it "
                                        f"takes in were not read (up to line {rows.line_num})") from error
                row = fault(str(error))
            yield f"line {rows.line_num}", row


def _check_utf8(text: str) -> None:
    """UnicodeDecodeError for text that was read with `surrogateescape` and is not UTF-8."""
    text.encode(errors="surrogateescape").decode()


def _checked(found: Any, text: str) -> dict[str, Any]:
    """A value of JSON that is a record. ValueError for another, and for half of a surrogate pair in it."""
    if not isinstance(found, dict):
        raise ValueError(f"{str(found)[:80]!r} is not an object")
    if PLACE in found:
        raise ValueError(f"the key {PLACE!r} is reserved")
    if _SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. ValueError when it has a key twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        (key, _), = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:80]!r} stands twice in one object")
    return made


_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_LENIENT = json.JSONDecoder(parse_int=str)  # finds the end of what is refused


class _Stream:
    """The values of a JSON file, of which only the one that is read is held."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._text: str = file.read(_BLOCK)
        self._at = int(self._text.startswith("\ufeff"))
        self._before = 0  # bytes in front of the text that is held
        self._count = 0

    def broken(self, why: str, behind: int = 0) -> RecordsBroken:
        """The error of a file that cannot be read on, so many characters behind where it is read."""
        return RecordsBroken(f"{self._file.name} is not whole JSON: {why}, at byte {self._byte(behind)} after entry "
                             f"{self._count}; {self._count} entries before it were read")

    def next(self) -> str:
        """The character that the next value begins with; "" at the end."""
        while True:
            self._at = _SKIPPED.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at:self._at + 1]

    def array(self) -> Iterator[Record]:
        """The records of an array, which comes next."""
        self._at += 1
        while self.next() != "]":
            found, text = self._value()
            self._count += 1
            try:
                _check_utf8(text)
                yield _checked(found, text)
            except ValueError as error:
                yield fault(str(error))
        self._at += 1

    def arrays_of(self, key: str) -> Iterator[Record]:
        """The records of the arrays that an object, which comes next, holds under a key."""
        if self.next() != "{":
            raise self.broken(f"it is not an object with {key!r}")
        self._at += 1
        while self.next() != "}":
            name, _ = self._value()
            if self.next() == "[":
                yield from (item for item in self.array() if name == key)
            else:
                self._value()
        self._at += 1

    def _value(self) -> tuple[Any, str]:
        """The value that comes next, or the fault that it has, and its text."""
        self.next()
        while True:
            try:
                found, end = self._decoded()
            except json.JSONDecodeError as error:
                behind, why = error.pos - self._at, error.msg
                if not self._more():
                    raise self.broken(why, behind) from error
            except RecursionError as error:
                raise self.broken("it is nested too deeply") from error
            else:
                if end < len(self._text) or not self._more():  # or a number may go on
                    text, self._at = self._text[self._at:end], end
                    return found, text

    def _decoded(self) -> tuple[Any, int]:
        try:
            return _STRICT.raw_decode(self._text, self._at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # a key twice, or a number with more digits than Python reads
            return fault(str(error)), _LENIENT.raw_decode(self._text, self._at)[1]

    def _more(self) -> bool:
        """Reads about as much again as is held; False at the end of the file."""
        held = len(self._text) - self._at
        block = self._file.read(max(_BLOCK, held)) if held < _LARGEST else ""
        if block:
            self._before, self._text, self._at = self._byte(0), self._text[self._at:] + block, 0
        return bool(block)

    def _byte(self, behind: int) -> int:
        return self._before + len(self._text[:self._at + behind].encode(errors="surrogateescape"))
