"""The report of a conversion: what became of every name, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from aurora.errors import AuroraError
from aurora.terminal import stdout, table
from aurora.weights.loading import some


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
    """A conversion: its layouts, and what became of every name."""

    part: str
    source: str
    target: str
    source_layout: str
    target_layout: str
    options: dict[str, Any]
    mapped: list[Mapped] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # names that the source should have
    unexpected: list[str] = field(default_factory=list)  # names of the source that the layout does not have
    left_out: list[str] = field(default_factory=list)  # names of the source that the target has no place for
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of data in the target."""
        return sum(each.bytes for each in self.mapped)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "bytes": self.bytes}


def show(report: Report) -> None:
    """The table, and what the config of a model with these weights says."""
    console = stdout()
    console.print(f"{report.part}: {report.source_layout} → {report.target_layout}", soft_wrap=True)
    shown = table("tensors", "number", "names", numbers=("number",))
    shown.add_row("written", f"{len(report.mapped):,}", f"{report.bytes:,} bytes")
    for kind, names in (("missing", report.missing), ("unexpected", report.unexpected), ("left out", report.left_out)):
        shown.add_row(kind, f"{len(names):,}", some(names))
    console.print(shown)
    slot, _, name = report.part.partition(" ")
    options = ", ".join(f"{key}: {value}" for key, value in report.options.items() if key != "vocab_size")
    console.print(f"in a config: {slot}: {{name: {name}, {options}}}", soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True)


def refuse_gaps(report: Report, *, missing_too: bool, unexpected_too: bool) -> None:
    """AuroraError when names are missing or unexpected and that was not allowed."""
    if report.missing and not missing_too:
        raise AuroraError(f"{report.source} lacks {len(report.missing)} tensor(s): {some(report.missing)}; "
                          "--allow-missing writes what is there")
    if report.unexpected and not unexpected_too:
        raise AuroraError(f"{report.source} holds {len(report.unexpected)} unexpected tensor(s): "
                          f"{some(report.unexpected)}; --allow-unexpected leaves them out")
