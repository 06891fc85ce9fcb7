"""Progress for people: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aurora.training.module import AuroraModule
from aurora.training.recipe import Display
from aurora.training.tally import StepReport
from aurora.types import PackedBatch

REFRESH_SECONDS = 0.25


class ProgressDisplay(L.Callback):
    """Shows step, loss, learning rate and throughput on rank 0."""

    def __init__(self, *, stage: str, display: Display, seconds: float, console: Console) -> None:
        live = console.is_terminal and not console.is_dumb_terminal
        self.display = ("bar" if live else "lines") if display == "auto" else display
        self.stage = stage
        self.console = console
        self.interval = REFRESH_SECONDS if self.display == "bar" else seconds
        self._bar: Progress | None = None
        self._shown = 0.0
        self._rows = 0
        self._line = ""

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        if module.global_rank != 0:
            self.display = "none"
        if self.display == "bar":
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                 TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"), console=self.console,
                                 auto_refresh=False)
            self._bar.add_task(self.stage, total=module.total_steps, completed=module.step, numbers="")
            self._bar.start()
        self._shown = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: PackedBatch,
                           batch_idx: int) -> None:
        self._rows = 0 if batch.closes_step else self._rows + 1
        now = time.monotonic()
        if self.display != "none" and now - self._shown >= self.interval:
            self._shown = now
            self._show(module)

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        if self.display != "none" and module.report is not None:
            self._show(module)
        self._close()

    def on_exception(self, trainer: L.Trainer, module: AuroraModule, exception: BaseException) -> None:
        self._close()

    def _show(self, module: AuroraModule) -> None:
        numbers = "first step" if module.report is None else describe(module.report)
        within = f" + {self._rows} rows" if self._rows else ""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=module.step, numbers=numbers + within, refresh=True)
            return
        line = f"{self.stage} {module.step}/{module.total_steps}{within}  {numbers}"
        if line != self._line:
            self.console.print(line)
            self._line = line

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(report: StepReport) -> str:
    """A step in one line."""
    skipped = f"  skipped {report.skipped}" if report.skipped else ""
    return (f"loss {report.loss:.4f}  lr {report.lr:.2e}  {report.tokens_per_second:,.0f} tokens/s  "
            f"{report.samples_per_second:.1f} samples/s{skipped}")
