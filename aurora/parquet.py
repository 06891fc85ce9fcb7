"""Rows of Parquet files, read by row group and written."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as missing:
    raise AuroraError("Parquet needs the package 'pyarrow', which is not installed; "
                      "try: pip install 'auroralong[parquet]'") from missing


def places(path: Path) -> Iterator[tuple[int, int, int]]:
    """Row group and row of every record, and the bytes of a row of its group on average."""
    for group in range(_file(path).num_row_groups):
        facts = _file(path).metadata.row_group(group)
        yield from ((group, row, facts.total_byte_size // facts.num_rows) for row in range(facts.num_rows))


def rows(path: Path) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Every record, or why it cannot be read."""
    try:
        for batch in _file(path).iter_batches():
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:  # in some of them
                yield from (_row_or_error(batch, number) for number in range(batch.num_rows))
    except (pa.ArrowException, OSError) as error:
        raise AuroraError(f"{path} cannot be read to its end: {error}") from error


def columns(path: Path) -> list[str]:
    """The names of the columns."""
    return list(_file(path).schema_arrow.names)


def holds_bytes(path: Path) -> bool:
    """Whether a column holds media, and not only text and numbers."""
    return any(_of_bytes(field.type) for field in _file(path).schema_arrow)


def row(path: Path, group: int, number: int) -> dict[str, Any]:
    """A record. UnicodeDecodeError when it holds text that is not UTF-8."""
    return _group(path, group).slice(number, 1).to_pylist()[0]  # type: ignore[no-any-return]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Writes rows whose columns have the kinds of Arrow that are named, such as "string"."""
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def _row_or_error(table: Any, number: int) -> dict[str, Any] | UnicodeDecodeError:
    try:
        return table.slice(number, 1).to_pylist()[0]  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        return error


def _of_bytes(kind: Any) -> bool:
    inside = [kind.field(number).type for number in range(kind.num_fields)]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or any(map(_of_bytes, inside))


@lru_cache(maxsize=4)
def _file(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise AuroraError(f"{path} cannot be read as Parquet: {error}") from error


@lru_cache(maxsize=1)
def _group(path: Path, group: int) -> Any:
    try:
        return _file(path).read_row_group(group)
    except (pa.ArrowInvalid, OSError) as error:
        raise AuroraError(f"{path}: row group {group} cannot be read: {error}") from error
