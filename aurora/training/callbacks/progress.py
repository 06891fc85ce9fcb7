"""Progress for people: Lightning's bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from aurora.recipe import Display
from aurora.steps import Step
from aurora.training.module import AuroraModule


def progress_callbacks(display: Display, *, stage: str, seconds: float, console: Console) -> list[L.Callback]:
    """A bar, lines or nothing; `auto` is a bar on a terminal and lines elsewhere."""
    live = console.is_terminal and not console.is_dumb_terminal
    if display == "bar" or (display == "auto" and live):
        return [RichProgressBar(leave=True, console_kwargs={"highlight": False})]
    return [] if display == "none" else [ProgressLines(stage=stage, seconds=seconds, write=console.print)]


class ProgressLines(L.Callback):
    """Writes step, loss, learning rate and throughput on rank 0, and every validation's loss."""

    def __init__(self, *, stage: str, seconds: float, write: Callable[[str], None]) -> None:
        self.stage, self.seconds, self.write = stage, seconds, write
        self._shown = time.monotonic()
        self._line = ""
        self._validated = 0.0

    def on_train_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._shown = time.monotonic()

    def on_after_backward(self, trainer: L.Trainer, module: AuroraModule) -> None:
        """Within a step, which may take long."""
        if time.monotonic() - self._shown >= self.seconds:
            self._show(trainer, rows=module.meter.sums.rows + 1)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        if time.monotonic() - self._shown >= self.seconds:
            self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._show(trainer)

    def on_validation_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._validated = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.is_global_zero and "val_loss" in metrics:
            self.write(f"{self.stage} {trainer.global_step}/{trainer.max_steps}  val_loss {metrics['val_loss']:.4f} on "
                       f"{metrics['val_targets']:,.0f} targets in {time.monotonic() - self._validated:.1f} s")

    def _show(self, trainer: L.Trainer, rows: int = 0) -> None:
        self._shown, metrics = time.monotonic(), trainer.callback_metrics
        numbers = describe(metrics) if "loss" in metrics else "first step"
        within = f" + {rows} rows" if rows else ""
        line = f"{self.stage} {trainer.global_step}/{trainer.max_steps}{within}  {numbers}"
        if trainer.is_global_zero and line != self._line:
            self.write(line)
            self._line = line


def describe(metrics: Mapping[str, Any]) -> str:
    """A step in one line."""
    skipped = f"  skipped {metrics['skipped']:.0f}" if metrics["skipped"] else ""
    return (f"loss {metrics['loss']:.4f}  lr {metrics['lr']:.2e}  {metrics['tokens_per_second']:,.0f} tokens/s  "
            f"{metrics['samples_per_second']:.1f} samples/s{skipped}")
