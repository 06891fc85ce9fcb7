"""The curve of a stage on disk: a line of metrics per step."""

import csv
from pathlib import Path

METRICS_FILE = "metrics.csv"


def read_metrics(folder: str | Path) -> list[dict[str, str]]:
    """The lines of a stage's curve; what a crash made of the last ones is left out."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = list(csv.DictReader(lines[:-1]))
    return [{key: value for key, value in row.items() if key is not None} for row in rows
            if (row.get("step") or "").isdecimal()]
