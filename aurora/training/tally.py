"""What a step adds up over its rows and ranks, and what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from aurora.training.parallel import sum_over_ranks, world_size
from aurora.types import PackedBatch, TokenLoss


@dataclass
class Tally:
    """Sums over the rows of one step."""

    loss: float = 0.0  # in nats
    targets: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0  # row positions
    frames: float = 0.0
    waited: float = 0.0  # seconds between rows

    def __post_init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.rows = 0

    def add(self, batch: PackedBatch, loss: TokenLoss) -> None:
        """Counts a row. The loss is read later, so that an accelerator need not be waited for."""
        self._pending.append((loss.total.detach(), loss.count))
        self.rows += 1
        self.samples += batch.samples
        self.tokens += batch.tokens.shape[0]
        self.frames += sum(frames.pixels.shape[0] for frames in batch.frames)

    def over_ranks(self, device: torch.device) -> Tally:
        """The sums over all ranks. Collective."""
        self.loss = float(torch.stack([total.double() for total, _ in self._pending]).sum())
        self.targets = float(torch.stack([count for _, count in self._pending]).sum())
        self._pending.clear()
        names = [field.name for field in fields(self)]
        sums = sum_over_ranks([getattr(self, name) for name in names], device)
        return Tally(**dict(zip(names, sums, strict=True)))


class StepReport(NamedTuple):
    """One optimizer step, as logged."""

    step: int  # steps done, this one included
    loss: float  # mean per target, in nats
    lr: float
    grad_norm: float  # before clipping
    tokens_per_second: float
    samples_per_second: float
    frames_per_second: float
    data_wait: float  # share of the time spent waiting for rows
    samples: float
    targets: float
    skipped: int  # steps skipped so far
    seconds: float
    memory_gib: float  # held at most so far, by rank 0: on its GPU, else in main memory
    teraflops: float  # per second and device, in products that a step cannot do without
    mfu: float | None  # the share that this is of the device's peak; None where the peak is not known

    @classmethod
    def of(
        cls, tally: Tally, *, step: int, lr: float, grad_norm: float, skipped: int, seconds: float, memory: int,
        flops: float, peak: float | None,
    ) -> StepReport:
        """The report of a step from its sums over all ranks; `flops` are those of the step, `peak` is per second."""
        rate = flops / seconds / world_size()
        return cls(
            step=step,
            loss=tally.loss / max(1.0, tally.targets),
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=tally.tokens / seconds,
            samples_per_second=tally.samples / seconds,
            frames_per_second=tally.frames / seconds,
            data_wait=min(1.0, tally.waited / world_size() / seconds),
            samples=tally.samples,
            targets=tally.targets,
            skipped=skipped,
            seconds=seconds,
            memory_gib=memory / 2**30,
            teraflops=rate / 1e12,
            mfu=None if peak is None else rate / peak,
        )
