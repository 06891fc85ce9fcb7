"""The results of a run: a table on the console, `results.json`, `results.md` and `results.png`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tools.bench.case import Result, Row
from tools.bench.machine import Ceilings, warning
from tools.bench.timing import Spread, spread

UNITS = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
COLUMNS = ("contestant", "median (quartiles)", "rate", "× the first", "of the limit", "difference", "peak memory")
"""`× the first`: how many times longer than the first contestant in the same rounds, with quartiles."""


def cells(row: Row) -> list[str]:
    """A measured row as text, in the order of COLUMNS."""
    assert row.seconds is not None
    return [
        row.contestant,
        durations(row.seconds),
        "" if row.rate is None else f"{figure(row.rate)} {row.unit}/s",
        "" if row.slower is None else f"{row.slower.median:.2f}× ({row.slower.low:.2f} to {row.slower.high:.2f})",
        "" if row.of_limit is None else f"{row.of_limit.median:.1%}",
        "" if row.difference is None else f"{row.difference:.1e}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB",
    ]


def console_table(result: Result) -> Group:
    """One case; below it, what the machine could do, and who could not take part and why."""
    table = Table(title=result.case, title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in result.rows:
        if row.status == "ok":
            table.add_row(*cells(row))
    notes = [Text(f" {row.contestant}: {row.note}", style="red" if row.status == "failed" else "dim")
             for row in result.rows if row.status != "ok"]
    notes.append(Text(f" limit: {describe_ceilings(result.ceilings)}", style="dim"))
    disturbed = warning(result.others)
    if disturbed is not None:
        notes.append(Text(f" {disturbed}", style="red"))
    return Group(table if table.row_count else Text(result.case, style="italic"), *notes, "")


def write_results(folder: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """`results.json`, `results.md` and `results.png`."""
    from tools.bench.report import plot

    plain = [{"case": result.case, "ceilings": [each._asdict() for each in result.ceilings],
              "other_processes_cores": result.others, "rows": [_plain(row) for row in result.rows]}
             for result in results]
    (folder / "results.json").write_text(json.dumps({**machine, "cases": plain}, indent=2) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(machine, results), encoding="utf-8")
    plot([row for result in results for row in result.rows], folder / "results.png")


def markdown(machine: dict[str, Any], results: Sequence[Result]) -> str:
    """The whole run as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"`{machine['command']}`",
        "",
        f"{machine['date']}, {machine['device']}, {machine['threads']} threads. "
        f"{versions}.",
        "",
    ]
    for result in results:
        lines += [f"### {result.case}", "", "| " + " | ".join(COLUMNS) + " |",
                  "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in result.rows if row.status == "ok"]
        lines.append("")
        lines += [f"- {row.contestant}: {row.note}" for row in result.rows if row.status != "ok"]
        lines.append(f"- limit: {describe_ceilings(result.ceilings)}")
        disturbed = warning(result.others)
        lines += [*([] if disturbed is None else [f"- {disturbed}"]), ""]
    return "\n".join(lines)


def describe_ceilings(ceilings: Sequence[Ceilings]) -> str:
    """The measured limits in a sentence: medians over the rounds, with quartiles."""
    if not ceilings:
        return "not measured"
    flops, read = (spread([each[place] / 1e9 for each in ceilings]) for place in (0, 1))
    figures = (f"{figure(each.median)} ({figure(each.low)} to {figure(each.high)})" for each in (flops, read))
    return "matrix products in {2} {0} GFLOP/s, reading {1} GB/s".format(*figures, ceilings[0].dtype)


def durations(seconds: Spread) -> str:
    """The median and the quartiles in the unit that fits the median."""
    factor, unit = next((factor, unit) for factor, unit in UNITS if seconds.median * factor >= 1 or unit == "µs")
    median, low, high = (figure(value * factor) for value in seconds[:3])
    return f"{median} {unit} ({low} to {high})"


def figure(value: float) -> str:
    """Three figures, never in powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value: Any) -> Any:
    """Named tuples as mappings, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    return value


LEAD, OTHER = "#1b6ca8", "#b9c4cc"
ROW_INCHES = 0.28


def plot(rows: Sequence[Row], path: Path) -> None:
    """Two bars per measured row, as a PNG."""
    timed = [row for row in rows if row.seconds is not None]
    figure = Figure(figsize=(13, 1.2 + ROW_INCHES * (len(timed) + len({row.case for row in timed}))))
    left, right = figure.subplots(1, 2, sharey=True)
    places, labels = _places(timed)
    colors = [LEAD if row.slower is None else OTHER for row in timed]
    ratios = [1.0 if row.slower is None else row.slower.median for row in timed]
    shares = [100 * (row.of_limit.median if row.of_limit else 0.0) for row in timed]
    _bars(left, places, ratios, colors, [f"{ratio:.2f}×" for ratio in ratios])
    _bars(right, places, shares, colors, [f"{share:.0f} %" for share in shares])
    left.set_xscale("log")
    left.set_yticks(places, labels, fontsize=7)
    if places:
        left.set_ylim(places[-1] + 1, places[0] - 1)
    left.set_title("time, as a multiple of the first row of each case", fontsize=9)
    right.set_title("share of the machine's measured limit", fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _places(rows: Sequence[Row]) -> tuple[list[float], list[str]]:
    """Where each bar stands, a gap before every case, whose name the first bar carries."""
    places: list[float] = []
    labels = []
    last = None
    for row in rows:
        new = row.case != last
        places.append((places[-1] if places else 0.0) + (2.0 if new else 1.0))
        labels.append(f"{row.case}\n{row.contestant}" if new else row.contestant)
        last = row.case
    return places, labels


def _bars(axes: Axes, places: list[float], values: list[float], colors: list[str], reported: list[str]) -> None:
    bars = axes.barh(places, values, color=colors, height=0.8)
    axes.bar_label(bars, reported, padding=3, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
