"""Records of annotation files, streamed: JSON arrays, JSON lines, CSV, TSV and Parquet; and joins of two of them.

A record is an object of JSON. What cannot be read as one, or says one thing twice, is given as a `fault`, so that it is
counted where the others are used; a JSON array that breaks off in the middle raises AnnotationsBroken after what stands
before.
"""

from __future__ import annotations

import codecs
import csv
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from aurora.errors import AuroraError
from aurora.interfaces import Entry

_BLOCK = 1 << 16
_OPEN = 1 << 12  # brackets that a block may open without closing them
FAULT = "$fault"
"""Key of an entry whose record cannot be read, and says why."""
PLACE = "$place"
"""Key of an entry that says where its record stands, for `record_at`."""
Joined = tuple[Any, Any, list[Any]]
"""An id, the value that it has in one list, and those in the other."""


class AnnotationsBroken(AuroraError):
    """A file of annotations whose rest cannot be read; what stands before was given."""


def fault(detail: str) -> Entry:
    """The entry of a record that cannot be read."""
    return {FAULT: detail}


def entries(path: Path, name: str, *, by_place: bool = False) -> Iterator[Entry]:
    """The records of a file, or where they stand if they carry their media: rows of Parquet with a column of bytes,
    and with `by_place` lines of JSON. AuroraError for a file of another kind.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        from . import _parquet  # pyarrow is an extra

        _check_columns(path, _parquet.columns(path))
        return ({PLACE: [name, *place]} for place in _parquet.places(path)) if _parquet.holds_bytes(path) else (
            _parquet.rows(path))
    if kind in (".csv", ".tsv"):
        return _rows(path, "," if kind == ".csv" else "\t")
    if kind in (".jsonl", ".ndjson"):
        return _lines(path, name, by_place)
    if kind == ".json":
        return _lines(path, name, by_place) if _is_lines(path) else items(path, "item")
    raise AuroraError(f"{path}: annotations are .json, .jsonl, .ndjson, .csv, .tsv or .parquet files")


def _check_columns(path: Path, names: Iterable[str]) -> None:
    """AuroraError when two columns of a table have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AuroraError(f"{path} has several columns of the name {', '.join(map(repr, twice))}; rename all but one")


def record_at(folder: Path, place: Sequence[Any]) -> Any:
    """The record at a place. AuroraError when the file is not what it was."""
    name, *where = place
    if Path(name).suffix.lower() == ".parquet":
        from . import _parquet

        return _parquet.row(folder / name, *where)
    with folder.joinpath(name).open("rb") as file:
        file.seek(where[0])
        return json.loads(file.read(where[1]), object_pairs_hook=_object)


def weight_of(folder: Path, place: Sequence[Any]) -> int:
    """About how many bytes the record at a place has, media included."""
    name, *where = place
    if Path(name).suffix.lower() == ".parquet":
        from . import _parquet

        return _parquet.weight(folder / name, where[0])
    return int(where[1])


def items(path: Path, prefix: str) -> Iterator[Entry]:
    """What a JSON file holds below a prefix, such as "item" (of the array that it is) or "annotations.item"."""
    count = 0
    with path.open("rb") as file:
        _skip_mark(file)
        try:
            for item in ijson.items(_Shallow(file), prefix, use_float=True, buf_size=_BLOCK, map_type=_Object):
                count += 1
                yield _checked(item)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            byte = _broken_at(file, file.tell())
            # Some of the parser's messages are bytes, of which the rest is the place in the file.
            message = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
            why = message.strip().partition("\n")[0].rstrip(".")
            raise AnnotationsBroken(f"{path} is not whole JSON: {why}, at byte {byte} after entry {count}; "
                                    f"{count} entries before it were read") from error


def joined(left: Iterable[tuple[Any, Any]], right: Iterable[tuple[Any, Any]]) -> Iterator[Joined]:
    """Every (id, value) of `left` with the values of `right` that have its id, both in their order; values are JSON.

    Joined in a file, so that neither has to fit into memory. Ids are numbers in one list and strings in the other, in
    some datasets.
    """
    with tempfile.TemporaryDirectory(prefix="aurora-join-") as folder:
        base = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
        try:
            # Nothing of it is needed after a crash.
            base.execute("PRAGMA journal_mode = OFF")
            base.execute("PRAGMA synchronous = OFF")
            base.execute("CREATE TABLE found (id, value TEXT)")
            base.execute("BEGIN")
            base.executemany("INSERT INTO found VALUES (?, ?)", ((str(key), json.dumps(value)) for key, value in right))
            base.execute("COMMIT")
            base.execute("CREATE INDEX by_id ON found (id)")
            for key, value in left:
                found = base.execute("SELECT value FROM found WHERE id = ? ORDER BY rowid", (str(key),))
                yield key, value, [json.loads(other) for (other,) in found]
        except sqlite3.OperationalError as error:
            if "is full" not in str(error):
                raise
            raise AuroraError(f"{folder}: no room left on the disk for joining annotations; make room there, or set "
                              "TMPDIR to a folder that has some, and run again") from error
        finally:
            base.close()


def _checked(item: Any) -> Entry:
    """The item of a list, or the fault that it has."""
    if not isinstance(item, dict):
        return fault(f"{str(item)[:80]!r} is not an object")
    left: list[Any] = [item]
    while left:
        one = left.pop()
        if isinstance(one, _Object):
            if one.twice is not None:
                return fault(_twice(one.twice))
            left += one.values()
        elif isinstance(one, list):
            left += one
    return item


def _lines(path: Path, name: str, by_place: bool) -> Iterator[Entry]:
    _check_lines(path)
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield {PLACE: [name, at, len(line)]} if by_place else _parsed(line, f"line {number}")
            at += len(line)


def _parsed(line: bytes, where: str) -> Entry:
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return fault(f"{where}: {error}")
    return record if isinstance(record, dict) else fault(f"{where}: {str(record)[:80]!r} is not an object")


def _check_lines(path: Path) -> None:
    """AuroraError for JSON that is not one record per line, of which every line would count as a bad one."""
    with path.open("rb") as file:
        _skip_mark(file)
        lines = (line.strip() for line in file if line.strip())
        first, second = next(lines, b""), next(lines, None)
    if first.startswith(b"["):
        raise AuroraError(f"{path} is a JSON list, not lines of JSON; name it .json")
    if first.startswith(b"{") and second is not None and _breaks_off(first) and FAULT in _parsed(second, ""):
        raise AuroraError(f"{path} is one JSON object over several lines; annotations are a list of objects (.json) or "
                          "objects with a line each (.jsonl)")


def _breaks_off(line: bytes) -> bool:
    """Whether what is missing of a line's JSON could stand behind it."""
    try:
        json.loads(line)
    except (ValueError, RecursionError) as error:
        return isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc)
    return False


def _rows(path: Path, delimiter: str) -> Iterator[Entry]:
    # A cell may hold a long caption or a serialised list.
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file, delimiter=delimiter, restkey=FAULT, strict=True)
        checked = False
        while True:
            try:
                if not checked:  # spreadsheets leave some columns without a name
                    _check_columns(path, filter(None, rows.fieldnames or ()))
                    checked = True
                row: Mapping[Any, Any] = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    raise AnnotationsBroken(f"{path}: a quote is not closed before the end of the file; the rows that "
                                            f"it takes in were not read (up to line {rows.line_num})") from error
                yield fault(f"line {rows.line_num}: {error}")
            else:
                yield fault(f"line {rows.line_num}: more cells than columns") if row.get(FAULT) else dict(row)


def _is_lines(path: Path) -> bool:
    """Whether a .json file is lines of JSON, as some are."""
    with path.open("rb") as file:
        _skip_mark(file)
        while (first := file.read(1)).isspace():
            pass
    return first == b"{"


def _skip_mark(file: BinaryIO) -> None:
    """Goes behind the mark that some editors put before UTF-8."""
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)


def _broken_at(file: BinaryIO, read: int) -> int:
    """The first byte that cannot belong to JSON, among the last block of those read; their number if the end came."""
    file.seek(0)
    _skip_mark(file)
    parser = ijson.basic_parse_coro(_Nobody())
    try:
        while file.tell() + _BLOCK < read:
            parser.send(file.read(_BLOCK))
        for byte in range(file.tell(), read):
            at = byte
            parser.send(file.read(1))
    except (ijson.JSONError, UnicodeDecodeError, SystemError):  # the latter for a number that overflows
        return at
    return read


class _Object(dict[str, Any]):
    """An object of JSON that remembers a key that it was given twice."""

    twice: str | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            self.twice = key
        super().__setitem__(key, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. ValueError when it has a key twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        (key, _), = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(_twice(key))
    return made


def _twice(key: str) -> str:
    return f"the key {key[:80]!r} stands twice in one object"


class _Shallow:
    """A file of JSON whose reading ends where it opens brackets without end: the parser's memory grows with the square
    of their depth."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        if sum(map(block.count, (b"[", b"{"))) - sum(map(block.count, (b"]", b"}"))) > _OPEN:
            raise ijson.JSONError(f"more than {_OPEN} brackets are open")
        return block


class _Nobody:
    """Takes events and does nothing with them."""

    send: Callable[[Any], None] = staticmethod(lambda event: None)
    close: Callable[[], None] = staticmethod(lambda: None)
