"""A CSV of step metrics that continues where a resumed run continues."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from aurora.files import replacing
from aurora.training.checkpoint.run_folder import METRICS_FILE


class CsvLogger(Logger):
    """One line per step in `save_dir`/metrics.csv, written at once, so that a killed run keeps its metrics.

    What is logged of a step later, such as the validation loss, is added to its line; what is logged before the first
    step has none.
    """

    def __init__(self, *, save_dir: str, resume_step: int = 0) -> None:
        """Lines of steps after `resume_step` are dropped: the resumed run takes those steps again."""
        super().__init__()
        self.path = Path(save_dir) / METRICS_FILE
        self._columns: list[str] = []
        self._late: list[dict[str, Any]] = []  # lines that could not be written
        self._last: dict[str, Any] = {}  # the last line, and where it begins
        self._begun = 0
        self._resume_step = resume_step
        self._started = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config lies beside the curve as config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step == 0:
            return
        row = {"step": step, **{key: value for key, value in metrics.items() if key not in ("step", "epoch")}}
        if self._late and self._late[-1]["step"] == step:
            self._late[-1].update(row)
        else:
            self._late.append(row)
        if not self._started:
            self._start()
        more = self._late[0]["step"] == self._last.get("step")
        if more:
            self._late[0] = {**self._last, **self._late[0]}
        missing = dict.fromkeys(key for row in self._late for key in row if key not in self._columns)
        if missing:
            rows = read_metrics(self.path.parent)
            self._write([*rows[: len(rows) - more], *self._late[:more]], [*self._columns, *missing])
            del self._late[:more]
        self._append(self._begun if more and not missing else self.path.stat().st_size)

    def _start(self) -> None:
        kept: list[dict[str, Any]] = [{**row, "step": int(row["step"])} for row in read_metrics(self.path.parent)]
        kept = [row for row in kept if row["step"] <= self._resume_step]
        self._write(kept, list(kept[0]) if kept else [])
        self._started = True

    def _append(self, begun: int) -> None:
        """Writes the lines that are late from a place in the file on, all or none: a full disk takes a part of them."""
        if not self._late:
            return
        lines = io.StringIO(newline="")
        csv.DictWriter(lines, self._columns).writerows(self._late)
        data = lines.getvalue().encode()
        with self.path.open("r+b", buffering=0) as file:
            file.seek(begun)
            before = file.readall()
            try:
                _overwrite(file, begun, data)
            except OSError:
                _overwrite(file, begun, before)
                raise
        self._last, self._begun = self._late[-1], begun + data.rstrip().rfind(b"\n") + 1
        self._late.clear()

    def _write(self, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
        """Replaces the file at once: whoever is killed meanwhile leaves the old one."""
        with replacing(self.path, folder=False) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows[:-1])
            begun = file.tell()
            writer.writerows(rows[-1:])
        self._columns, self._last, self._begun = columns, dict(rows[-1]) if rows else {}, begun


def _overwrite(file: FileIO, begun: int, data: bytes) -> None:
    """Puts bytes where the last ones of a file are."""
    file.seek(begun)
    while data:
        data = data[file.write(data) :]
    file.truncate()


def read_metrics(folder: str | Path) -> list[dict[str, str]]:
    """The lines of a stage's curve; what a crash made of the last ones is left out."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = list(csv.DictReader(lines[:-1]))
    return [{key: value for key, value in row.items() if key is not None} for row in rows
            if (row.get("step") or "").isdecimal()]
