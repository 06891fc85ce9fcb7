"""Draws memory and time against frames, as the paper's Figures 1 and 3 do, in log-log scale."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aurora.evaluation.efficiency.point import OURS
from aurora.evaluation.figures import save

COLOURS = {OURS: "#c2410c", "transformer sdpa": "#2563eb", "transformer eager": "#64748b"}


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """The figure in every format, as efficiency.png and efficiency.svg."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    memory, watching, answering = figure.subplots(1, 3)
    limit = result["settings"]["limit_bytes"]
    for name, points in result["series"].items():
        fitting = [point for point in points if point["fits"]]
        _line(memory, name, fitting, [None if point["peak_bytes"] is None else point["peak_bytes"] / 2**30
                                      for point in fitting], result["slopes"][name]["memory"])
        _line(watching, name, fitting, [point["watch_seconds"] for point in fitting],
              result["slopes"][name]["watching"])
        _line(answering, name, fitting, [point["stages"]["first token"]["seconds"] for point in fitting],
              result["slopes"][name]["first_token"])
        lost, reason = next(((point["frames"], point["reason"]) for point in points if not point["fits"]), (None, ""))
        if lost is not None and fitting:
            why = "took too long" if "took more" in reason else "does not fit"
            memory.axvline(lost, color=COLOURS[name], linestyle=":", linewidth=1)
            memory.annotate(f"{name} {why}", (lost, 0.98), xycoords=("data", "axes fraction"), rotation=90,
                            va="top", ha="right", fontsize=7, color=COLOURS[name])
    fits = all(point["fits"] for points in result["series"].values() for point in points)
    if limit is not None and not fits:  # far above all curves it would only flatten them
        memory.axhline(limit / 2**30, color="black", linewidth=0.8)
    _axes(memory, "peak memory (GiB)")
    _axes(watching, "watching the video (s)")
    _axes(answering, "question to first token (s)")
    return save(figure, folder / "efficiency")


def _line(axes: Axes, name: str, points: Sequence[Mapping[str, Any]], values: Sequence[float | None],
          slope: float | None) -> None:
    """One series with its slope in the legend; nothing where the system shows no memory."""
    seen = [(point["frames"], value) for point, value in zip(points, values, strict=True) if value]
    if seen:
        label = name if slope is None else f"{name} (slope {slope:.2f})"
        axes.plot(*zip(*seen, strict=True), marker="o", markersize=3, color=COLOURS[name], label=label)


def _axes(axes: Axes, title: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel="frames", title=title)
    axes.grid(True, which="both", linewidth=0.3, alpha=0.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
