"""Draws a sweep as the paper does: score against keep ratio (Figures 4, 5, D2–D4), tables over an axis (Table 4), and
score against the cost of training (Figure 6)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aurora.evaluation.figures import save

STYLES = {"0.9": ("#ca8a04", "90 %"), "0.8": ("#dc2626", "80 %")}


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """The figures that the sweep has the numbers for, each in every format."""
    written: list[Path] = []
    if result["curves"]:
        written += save(keep_ratio_figure(result["curves"]), folder / "keep-ratio")
    if any(point["gpu_hours"] is not None for point in result["means"]):
        written += save(cost_figure(result["means"]), folder / "cost")
    return written


def keep_ratio_figure(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel for every curve: means with a standard deviation, and where 90 % and 80 % of the peak are held."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, curve in zip(panels, curves, strict=False):
        ratios, scores = ([point[key] for point in curve["points"]] for key in ("keep_ratio", "mean"))
        panel.errorbar(ratios, scores, yerr=[point["deviation"] for point in curve["points"]], marker="o",
                       markersize=3, capsize=2, color="#1d4ed8")
        for share, ratio in curve["holds"].items():
            colour, label = STYLES[share]
            panel.axhline(float(share) * max(scores), color=colour, linewidth=0.8, linestyle="--",
                          label=f"{label} not held" if ratio is None else f"{label} from {ratio:g}")
            if ratio is not None:
                panel.axvline(ratio, color=colour, linewidth=0.8, linestyle=":")
        panel.set(xlabel="keep ratio", ylabel="score", title=label_of(curve["values"]) or "all jobs")
        panel.legend(fontsize=7)
    for panel in panels[len(curves):]:
        panel.set_visible(False)
    return figure


def cost_figure(means: Sequence[Mapping[str, Any]]) -> Figure:
    """Every point of the grid by the device hours of its training and its score."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for point in means:
        if point["gpu_hours"] is not None:
            axes.errorbar([point["gpu_hours"]], [point["mean"]], yerr=[point["deviation"]], marker="o", capsize=2,
                          linestyle="none", label=label_of(point["values"]))
    figure.legend(loc="outside lower center", fontsize=7)  # below: points of one training stand above each other
    axes.set(xlabel="device hours of training", ylabel="score")
    return figure


def tables(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By axis with several values: a row for each of them, with the mean over the whole rest of the grid for every
    benchmark, and the spread over seeds at each point of it.

    The spread is the root of the mean variance over seeds: what the other axes change is no noise.
    """
    means = result["means"]
    keys = {key for point in means for key in point["values"]} - {"benchmark"}
    found = {}
    for axis in sorted(keys, key=list(result["plan"]["axes"]).index):
        values = list(dict.fromkeys(point["values"][axis] for point in means))
        if len(values) > 1:
            found[axis] = [{"value": value, "scores": _by_benchmark(
                [point for point in means if point["values"][axis] == value], result["plan"]["benchmark"])}
                for value in values]
    return found


def _by_benchmark(points: Sequence[Mapping[str, Any]], default: str) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault(str(point["values"].get("benchmark", default)), []).append(point)
    return {name: {"mean": sum(point["mean"] for point in same) / len(same),
                   "deviation": (sum(point["deviation"] ** 2 for point in same) / len(same)) ** 0.5,
                   "jobs": sum(point["runs"] for point in same)} for name, same in groups.items()}


def label_of(values: Mapping[str, str]) -> str:
    """A point of the grid in words: its value alone where there is one axis; a list of overrides without its marks."""
    if len(values) == 1:
        return next(iter(values.values())).strip("[]").replace("'", "").replace(",", ", ")
    return ", ".join(f"{key}={value}" for key, value in values.items())
