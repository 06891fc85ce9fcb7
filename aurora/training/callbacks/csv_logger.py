"""A CSV of step metrics that continues where a resumed run continues."""

import csv
import io
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from aurora.curve import METRICS_FILE, read_metrics
from aurora.files import replacing


class CsvLogger(Logger):
    """One line per step in `save_dir`/metrics.csv, written at once, so that a killed run keeps its metrics.

    What is logged of a step later, such as the validation loss, is added to its line; step 0 has none.
    """

    def __init__(self, *, save_dir: str, resume_step: int = 0) -> None:
        """Lines of steps after `resume_step` are dropped: the resumed run takes those steps again."""
        super().__init__()
        self.path = Path(save_dir) / METRICS_FILE
        self._columns: list[str] = []  # none until the file is written
        self._tail: dict[int | None, dict[str, Any]] = {}  # by step: the last line, and what could not be written since
        self._begun = 0  # where the last line begins
        self._resume_step = resume_step

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config lies beside the curve as config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step == 0:
            return
        row = self._tail.setdefault(step, {"step": step})
        row.update((key, value) for key, value in metrics.items() if key not in ("step", "epoch"))
        if all(key in self._columns for row in self._tail.values() for key in row):
            self._write_tail()
        else:
            self._write_all()

    def _write_tail(self) -> None:
        """Writes the last lines anew, all or none: a full disk takes a part of them."""
        lines = io.StringIO(newline="")
        csv.DictWriter(lines, self._columns).writerows(self._tail.values())
        data = lines.getvalue().encode()
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self._begun)
            before = file.readall()
            try:
                _overwrite(file, self._begun, data)
            except OSError:
                _overwrite(file, self._begun, before)
                raise
        self._tail = dict([self._tail.popitem()])
        self._begun += data.rstrip().rfind(b"\n") + 1

    def _write_all(self) -> None:
        """Replaces the file at once: whoever is killed meanwhile leaves the old one."""
        rows: dict[int | None, dict[str, Any]] = {
            int(row["step"]): row for row in read_metrics(self.path.parent)
            if self._columns or int(row["step"]) <= self._resume_step}
        for step, row in self._tail.items():
            rows[step] = {**rows.get(step, {}), **row}
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        step, last = rows.popitem()
        with replacing(self.path, folder=False) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows.values())
            begun = file.tell()
            writer.writerow(last)
        self._columns, self._tail, self._begun = columns, {step: last}, begun


def _overwrite(file: FileIO, begun: int, data: bytes) -> None:
    """Puts bytes where the last ones of a file are."""
    file.seek(begun)
    while data:
        data = data[file.write(data) :]
    file.truncate()
