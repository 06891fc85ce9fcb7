"""Writes figures as PNG and SVG, the same file for the same figure."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from aurora.files import replacing

matplotlib.rcParams["svg.hashsalt"] = "aurora"  # ids that are not drawn at random
FORMATS = ("png", "svg")


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes the figure as `path`.png and `path`.svg."""
    written = []
    for kind in FORMATS:
        target = path.with_name(f"{path.name}.{kind}")
        with replacing(target, folder=False) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        written.append(target)
    return written
