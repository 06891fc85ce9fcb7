"""What became of every name: a value that is shown as a table and written as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

LISTED = 8


@dataclass(frozen=True)
class Mapped:
    """One tensor of the target, and what it was made of."""

    target: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Report:
    """A conversion: from what to what, and what became of every name."""

    part: str
    source: str
    target: str
    source_layout: str
    target_layout: str
    options: dict[str, Any]
    mapped: list[Mapped] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # names that the source should have
    unexpected: list[str] = field(default_factory=list)  # names of the source that nothing is known of
    left_out: list[str] = field(default_factory=list)  # names of the source that the target has no place for
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of data in the target."""
        return sum(each.bytes for each in self.mapped)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "bytes": self.bytes}


def show(report: Report, console: Console) -> None:
    """The table, and what the config of a model with these weights says."""
    console.print(f"{report.part}: {report.source_layout} → {report.target_layout}", soft_wrap=True)
    table = Table()
    table.add_column("tensors")
    table.add_column("number", justify="right")
    table.add_column("names", overflow="fold")
    table.add_row("written", f"{len(report.mapped):,}", f"{report.bytes:,} bytes")
    for told, names in (("missing", report.missing), ("unexpected", report.unexpected), ("left out", report.left_out)):
        table.add_row(told, f"{len(names):,}", some(names))
    console.print(table)
    slot, _, name = report.part.partition(" ")
    told = ", ".join(f"{key}: {value}" for key, value in report.options.items() if key != "vocab_size")
    console.print(f"in a config: {slot}: {{name: {name}, {told}}}", soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True)


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f", … ({len(names):,} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
