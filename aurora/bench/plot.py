"""A picture of a run: how much longer each contestant takes than the first, and its share of the machine's limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aurora.bench.case import Row

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
    shares = [100 * (row.of_limit or 0.0) for row in timed]
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


def _bars(axes: Axes, places: list[float], values: list[float], colors: list[str], told: list[str]) -> None:
    bars = axes.barh(places, values, color=colors, height=0.8)
    axes.bar_label(bars, told, padding=3, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
