"""The results of a run: a table on the console, `results.json`, `results.md` and `results.png`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from aurora.bench.case import Row
from aurora.bench.ceilings import Ceilings
from aurora.bench.timing import Spread

UNITS = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
COLUMNS = ("contestant", "median (quartiles)", "rate", "× the first", "of the limit", "difference", "peak memory")
"""`× the first`: how many times longer than the first contestant in the same rounds, with quartiles."""


def cells(row: Row) -> list[str]:
    """A row as text, in the order of COLUMNS; after the name of a contestant that has no figures, why."""
    if row.seconds is None:
        return [row.contestant, *[""] * (len(COLUMNS) - 1)]
    return [
        row.contestant,
        durations(row.seconds),
        "" if row.rate is None else f"{figure(row.rate)} {row.unit}/s",
        "" if row.slower is None else f"{row.slower.median:.2f}× ({row.slower.low:.2f} to {row.slower.high:.2f})",
        "" if row.of_limit is None else f"{row.of_limit:.1%}",
        "" if row.difference is None else f"{row.difference:.1e}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB",
    ]


def console_table(case: str, rows: Sequence[Row]) -> Group:
    """One case; below it, who could not take part and why."""
    table = Table(title=case, title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        if row.status == "ok":
            table.add_row(*cells(row))
    notes = [Text(f" {row.contestant}: {row.note}", style="red" if row.status == "failed" else "dim")
             for row in rows if row.status != "ok"]
    return Group(*([table] if table.row_count else [Text(case, style="italic")]), *notes, "")


def write_results(folder: Path, machine: dict[str, Any], ceilings: Ceilings, rows: Sequence[Row]) -> None:
    """`results.json`, `results.md` and `results.png`."""
    from aurora.bench.plot import plot

    plain = [{**_plain(row), "of_limit": row.of_limit} for row in rows]
    content = {**machine, "ceilings": ceilings._asdict(), "rows": plain}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(machine, ceilings, rows), encoding="utf-8")
    plot(rows, folder / "results.png")


def markdown(machine: dict[str, Any], ceilings: Ceilings, rows: Sequence[Row]) -> str:
    """The whole run as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"`{machine['command']}`",
        "",
        f"{machine['date']}, {machine['device']}, {machine['threads']} threads ({machine['cpu_capability']}). "
        f"{versions}.",
        "",
        ceilings_told(ceilings),
        "",
    ]
    for case, of_case in by_case(rows):
        lines += [f"### {case}", "", "| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
        lines += ["| " + " | ".join(_markdown_cells(row)) + " |" for row in of_case]
        lines.append("")
    return "\n".join(lines)


def ceilings_told(ceilings: Ceilings) -> str:
    """The measured limits in a sentence."""
    products = ", ".join(f"{name} {figure(value / 1e9)} GFLOP/s" for name, value in ceilings.flops.items())
    return f"Measured ceilings: matrix products {products}; reading {figure(ceilings.read / 1e9)} GB/s."


def by_case(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of every case, in order."""
    return [(case, list(of_case)) for case, of_case in groupby(rows, key=lambda row: row.case)]


def durations(seconds: Spread) -> str:
    """The median and the quartiles in the unit that fits the median."""
    factor, unit = next((factor, unit) for factor, unit in UNITS if seconds.median * factor >= 1 or unit == "µs")
    median, low, high = (figure(value * factor) for value in seconds[:3])
    return f"{median} {unit} ({low} to {high})"


def figure(value: float) -> str:
    """Three figures, never in powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown_cells(row: Row) -> list[str]:
    first, *others = cells(row)
    return [first, *others] if row.status == "ok" else [first, f"{row.status}: {row.note}".replace("|", "/"),
                                                        *others[1:]]


def _plain(value: Any) -> Any:
    """Named tuples as mappings, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    return value
