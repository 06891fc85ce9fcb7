"""Two lists of a dataset joined by an id in a file, so that neither has to fit into memory."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import AuroraError


class JoinRow(NamedTuple):
    """One entry of a list, with the id that it is found by and what is kept of it (JSON)."""

    id: Any
    kept: Any


def joined(left: Iterable[JoinRow], right: Iterable[JoinRow]) -> Iterator[tuple[JoinRow, list[Any]]]:
    """Every row of `left` with what is kept of the rows of `right` that have its id, both in their order."""
    with tempfile.TemporaryDirectory(prefix="aurora-join-") as folder:
        base = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
        try:
            # Nothing of it is needed after a crash.
            base.execute("PRAGMA journal_mode = OFF")
            base.execute("PRAGMA synchronous = OFF")
            base.execute("CREATE TABLE found (id, kept TEXT)")
            base.execute("BEGIN")
            base.executemany("INSERT INTO found VALUES (?, ?)", ((_id(row), json.dumps(row.kept)) for row in right))
            base.execute("COMMIT")
            base.execute("CREATE INDEX by_id ON found (id)")
            for row in left:
                found = base.execute("SELECT kept FROM found WHERE id = ? ORDER BY rowid", (_id(row),))
                yield row, [json.loads(kept) for (kept,) in found]
        except sqlite3.OperationalError as error:
            if "is full" not in str(error):
                raise
            raise AuroraError(f"{folder}: no room left on the disk for joining annotations; make room there, or set "
                              "TMPDIR to a folder that has some, and run again") from error
        finally:
            base.close()


def _id(row: JoinRow) -> str:
    # Ids are numbers in one list and texts in the other, in some datasets.
    return str(row.id)
