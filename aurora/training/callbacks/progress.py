"""Progress for people: Lightning's bar on a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from aurora.recipe import Display
from aurora.steps import Step
from aurora.training.module import AuroraModule

REFRESH_RATE = 4  # of the bar, per second


def progress_callbacks(display: Display, *, stage: str, seconds: float, console: Console) -> list[L.Callback]:
    """A bar, lines or nothing; `auto` is a bar on a terminal and lines elsewhere."""
    live = console.is_terminal and not console.is_dumb_terminal
    if display == "bar" or (display == "auto" and live):
        return [StepBar(stage=stage, console=console)]
    return [] if display == "none" else [ProgressLines(stage=stage, seconds=seconds, write=console.print)]


class StepBar(RichProgressBar):
    """Lightning's bar with the name of the stage and what `ProgressLines` writes."""

    def __init__(self, *, stage: str, console: Console) -> None:
        super().__init__(refresh_rate=REFRESH_RATE, leave=True, console_kwargs={
            "file": console.file, "force_terminal": console.is_terminal, "highlight": False})
        self.stage = stage

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """The stage in place of the epoch: to Lightning a stage is a single one."""
        return [_Description(self), *super().configure_columns(trainer)[1:]]

    def get_metrics(self, trainer: L.Trainer, module: AuroraModule) -> dict[str, str]:
        metrics = trainer.callback_metrics
        found = numbers(metrics) if "loss" in metrics else {}
        return found | ({"val_loss": f"{metrics['val_loss']:.4f}"} if "val_loss" in metrics else {})


class _Description(ProgressColumn):
    def __init__(self, bar: StepBar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        validating = task.description == self.bar.validation_description
        return Text(task.description if validating else self.bar.stage)


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

    def on_train_batch_end(self, trainer: L.Trainer, module: AuroraModule, outputs: Any, batch: Step,
                           batch_idx: int) -> None:
        if time.monotonic() - self._shown >= self.seconds:
            self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._show(trainer)

    def on_validation_start(self, trainer: L.Trainer, module: AuroraModule) -> None:
        self._validated = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, module: AuroraModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.is_global_zero and "val_loss" in metrics:
            accuracy = f", val_accuracy {metrics['val_accuracy']:.3f}" if "val_accuracy" in metrics else ""
            self.write(f"{self.stage} {trainer.global_step}/{trainer.max_steps}  val_loss {metrics['val_loss']:.4f} on "
                       f"{metrics['val_targets']:,.0f} targets{accuracy} in "
                       f"{time.monotonic() - self._validated:.1f} s")

    def _show(self, trainer: L.Trainer, rows: int = 0) -> None:
        self._shown, metrics = time.monotonic(), trainer.callback_metrics
        step = describe(metrics) if "loss" in metrics else "first step"
        within = f" + {rows} rows" if rows else ""
        line = f"{self.stage} {trainer.global_step}/{trainer.max_steps}{within}  {step}"
        if trainer.is_global_zero and line != self._line:
            self.write(line)
            self._line = line


def describe(metrics: Mapping[str, Any]) -> str:
    """A step in one line: `loss 5.7007  lr 1.00e-04  260 tokens/s`."""
    return "  ".join(f"{value} {name}" if name.endswith("/s") else f"{name} {value}"
                     for name, value in numbers(metrics).items())


def numbers(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a step."""
    skipped = {"skipped": f"{metrics['skipped']:.0f}"} if metrics["skipped"] else {}
    return {"loss": f"{metrics['loss']:.4f}", "lr": f"{metrics['lr']:.2e}",
            "tokens/s": f"{metrics['tokens_per_second']:,.0f}", "samples/s": f"{metrics['samples_per_second']:.1f}",
            **skipped}
