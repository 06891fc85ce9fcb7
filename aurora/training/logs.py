"""Where the curves go: a CSV that continues where a resumed run continues."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from aurora.training.instantiate import instantiate

CURVE_FILE = "metrics.csv"


class CsvLogger(Logger):
    """One line per step in `save_dir`/metrics.csv, written at once, so that a killed run keeps its curve."""

    def __init__(self, *, save_dir: str, resume_step: int = 0) -> None:
        """Lines of steps after `resume_step` are dropped: the resumed run takes those steps again."""
        super().__init__()
        self.path = Path(save_dir) / CURVE_FILE
        self._columns: list[str] = []
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
        if not self._started:
            self._start()
        row = {"step": step, **{key: value for key, value in metrics.items() if key != "step"}}
        if any(key not in self._columns for key in row):
            self._widen([key for key in row if key not in self._columns])
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self) -> None:
        self._started = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_curve(self.path.parent) if int(row["step"]) <= self._resume_step]
        self._columns = list(kept[0]) if kept else []
        self._write(kept)

    def _widen(self, columns: list[str]) -> None:
        rows = read_curve(self.path.parent)
        self._columns += columns
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def read_curve(folder: str | Path) -> list[dict[str, str]]:
    """The lines of a stage's curve; a last line that was cut off while it was written is left out."""
    path = Path(folder) / CURVE_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = list(csv.DictReader(lines[:-1]))
    return [{key: value for key, value in row.items() if key is not None} for row in rows if row.get("step")]


def build_loggers(entries: Mapping[str, Mapping[str, Any]], folder: Path, resume_step: int) -> list[Any]:
    """The loggers of configs/logger, writing below `folder` and continuing after `resume_step`."""
    return [_build(entry, folder, resume_step) for entry in entries.values()]


def _build(entry: Mapping[str, Any], folder: Path, resume_step: int) -> Any:
    kind = str(entry.get("_target_", "")).rpartition(".")[2]
    if kind == "MLFlowLogger":
        return _mlflow(entry, folder, resume_step)
    told: dict[str, Any] = {"save_dir": str(folder)}
    if kind == "CsvLogger":
        told["resume_step"] = resume_step
    elif kind == "TensorBoardLogger":
        told["purge_step"] = resume_step + 1
    elif kind == "WandbLogger":
        # the same folder is the same run, whoever starts it again
        name = "/".join(folder.absolute().parts[-2:])
        told |= {"id": hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16], "name": name}
    return instantiate({**told, **entry})


def _mlflow(entry: Mapping[str, Any], folder: Path, resume_step: int) -> Any:
    """MLflow makes the name of a run itself: it is kept beside the curve for whoever goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "mlflow_run"
    told: dict[str, Any] = {"run_name": folder.name, "tracking_uri": f"sqlite:///{folder.absolute() / 'mlflow.db'}"}
    if resume_step and kept.is_file():
        told["run_id"] = kept.read_text(encoding="utf-8").strip()
    logger = instantiate({**told, **{key: value for key, value in entry.items() if value is not None}})
    if rank_zero_only.rank == 0:
        kept.write_text(logger.run_id, encoding="utf-8")
    return logger
