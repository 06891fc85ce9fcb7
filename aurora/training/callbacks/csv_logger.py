"""The loggers of a run: a CSV of step metrics that continues where a resumed run continues, and those of a config."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from aurora.files import replacing
from aurora.instantiate import construct, instantiate
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


def build_loggers(entries: Mapping[str, Mapping[str, Any]], folder: Path, resume_step: int,
                  report: Callable[[str], None]) -> list[Any]:
    """The loggers of configs/logger, writing below `folder` and continuing after `resume_step`. One that fails later is
    reported once, and training goes on."""
    loggers = []
    for name, entry in entries.items():
        logger = construct(f"logger.{name}", _build, entry, folder, resume_step)
        loggers.append(_tolerated(logger, report))
    return loggers


def _tolerated(logger: Any, report: Callable[[str], None]) -> Any:
    """The logger, whose failures (a full disk, a server that is away) are not worth a run."""
    log = logger.log_metrics
    failed: set[int | None] = set()

    def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            log(metrics, step)
        except Exception as error:
            if not failed:
                report(f"{type(logger).__name__} could not write after step {step}, and training goes on: {error}")
            failed.add(step)

    logger.log_metrics = log_metrics
    return logger


def _build(entry: Mapping[str, Any], folder: Path, resume_step: int) -> Any:
    """A logger that has found its server and its files."""
    kind = str(entry.get("_target_", "")).rpartition(".")[2]
    if kind == "MLFlowLogger":
        return _mlflow(entry, folder, resume_step)
    facts: dict[str, Any] = {"save_dir": str(folder)}
    if kind == "CsvLogger":
        facts["resume_step"] = resume_step
    elif kind == "TensorBoardLogger":
        facts["purge_step"] = resume_step + 1
    elif kind == "WandbLogger":
        # the same folder is the same run, whoever starts it again
        name = "/".join(folder.absolute().parts[-2:])
        facts |= {"id": hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16], "name": name}
    logger = instantiate({**facts, **entry})
    if rank_zero_only.rank == 0:
        getattr(logger, "experiment", None)
    return logger


def _mlflow(entry: Mapping[str, Any], folder: Path, resume_step: int) -> Any:
    """MLflow makes the name of a run itself: it is kept beside the curve for whoever goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "mlflow_run"
    facts: dict[str, Any] = {"run_name": folder.name, "tracking_uri": f"sqlite:///{folder.absolute() / 'mlflow.db'}"}
    if resume_step and kept.is_file():
        facts["run_id"] = kept.read_text(encoding="utf-8").strip()
    logger = instantiate({**facts, **{key: value for key, value in entry.items() if value is not None}})
    if rank_zero_only.rank == 0:
        kept.write_text(logger.run_id, encoding="utf-8")
    return logger
