"""Step metrics: sums over rows and ranks, rates, norms by slot, gradient noise, memory, MFU."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from resource import RUSAGE_SELF, getrusage
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from aurora.model import AuroraModel
from aurora.recipe import TrainerOptions
from aurora.registry import WEIGHTED_SLOTS
from aurora.training.budget import Arithmetic, peak_flops
from aurora.training.distributed.collectives import sum_over_ranks, world_size
from aurora.types import PackedBatch, State, TokenLoss

# ---- sums ------------------------------------------------------------------------------------------------------


@dataclass
class Sums:
    """Sums over the rows of a step, or of a validation."""

    loss: float = 0.0  # in nats
    targets: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0  # row positions
    frames: float = 0.0
    data_wait: float = 0.0  # seconds between rows

    def __post_init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.rows = 0

    def add(self, row: PackedBatch, loss: TokenLoss) -> None:
        """Counts a row. The loss is read later, so that an accelerator need not be waited for."""
        self._pending.append((loss.total.detach(), loss.count))
        self.rows += 1
        self.samples += row.samples
        self.tokens += row.tokens.shape[0]
        self.frames += sum(frames.pixels.shape[0] for frames in row.frames)

    def over_ranks(self, device: torch.device) -> "Sums":
        """The sums over all ranks. Collective."""
        if self._pending:
            self.loss += float(torch.stack([total.double() for total, _ in self._pending]).sum())
            self.targets += float(torch.stack([count for _, count in self._pending]).sum())
            self._pending.clear()
        names = [field.name for field in fields(self)]
        return Sums(**dict(zip(names, sum_over_ranks([getattr(self, name) for name in names], device), strict=True)))

    @property
    def mean_loss(self) -> float:
        """Per target: a mean of means would weight short rows too high."""
        return self.loss / max(1.0, self.targets)

    def rates(self, seconds: float) -> dict[str, float]:
        """What was read per second, and the share of the time spent waiting for rows."""
        return {"tokens_per_second": self.tokens / seconds, "samples_per_second": self.samples / seconds,
                "frames_per_second": self.frames / seconds,
                "data_wait": min(1.0, self.data_wait / world_size() / seconds)}


def validation_metrics(sums: Mapping[str, Sums]) -> dict[str, float]:
    """`val_loss` per target over all datasets, and `val_loss_NAME` of each where there are several."""
    total = Sums(loss=sum(one.loss for one in sums.values()), targets=sum(one.targets for one in sums.values()))
    each = {f"val_loss_{name}": one.mean_loss for name, one in sums.items()} if len(sums) > 1 else {}
    return {"val_loss": total.mean_loss, "val_targets": total.targets, **each}


# ---- norms -----------------------------------------------------------------------------------------------------


def gradient_norms(model: AuroraModel) -> dict[str, float]:
    """The norm of every slot's gradients, sharded ones as a whole; slots without any are left out. Collective."""
    return _norms(model, lambda p: p.grad)


def total_norm(norms: Mapping[str, float]) -> float:
    """The norm of all slots together."""
    return math.sqrt(sum(norm * norm for norm in norms.values()))


def state_norms(states: State) -> dict[str, float]:
    """By name of a state: the root mean square of a layer's elements, averaged over layers, and the largest of all."""
    found = {}
    for name, tensor in states.items():
        layers = tensor.float().flatten(1)
        found[f"state_rms_{name}"] = float(layers.square().mean(1).sqrt().mean())
        found[f"state_max_{name}"] = float(layers.abs().max())
    return found


def _norms(model: AuroraModel, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, float]:
    norms: dict[str, float] = {}
    for slot in WEIGHTED_SLOTS:
        tensors = [tensor for p in getattr(model, slot).parameters() if (tensor := of(p)) is not None]
        if tensors:
            norm = nn.utils.get_total_norm(tensors)
            norms[slot] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return norms


class Noise(NamedTuple):
    """The two quantities whose quotient is the simple noise scale (McCandlish et al. 2018, appendix A.1), in targets.

    Each is unbiased and noisy: divide their averages over many steps.
    """

    trace: float  # of the covariance of a target's gradient
    square: float  # of the norm of the true gradient

    @classmethod
    def between(cls, small: tuple[float, float], large: tuple[float, float]) -> "Noise | None":
        """From (squared norm of the mean gradient, targets) of a part of a batch and of the whole; None when the part
        is the whole or nothing, or a norm is not finite."""
        (norm_small, small_count), (norm_large, large_count) = small, large
        if not 0 < small_count < large_count or not math.isfinite(norm_small + norm_large):
            return None
        square = (large_count * norm_large - small_count * norm_small) / (large_count - small_count)
        return cls((norm_small - norm_large) / (1 / small_count - 1 / large_count), square)


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this process: on its GPU, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- a step ----------------------------------------------------------------------------------------------------


class StepMeter:
    """Measures an optimizer step; every `measure_every` steps also weights, states and gradient noise."""

    def __init__(self, arithmetic: Arithmetic, options: TrainerOptions) -> None:
        self.arithmetic, self.options = arithmetic, options
        self.sums = Sums()
        self.flops = 0.0  # of the last step and this process
        self._measuring = False
        self._first: tuple[float, float] | None = None  # squared norm of the mean gradient and targets, first row
        self._states: dict[str, float] = {}  # state norms after the first row
        self._ended = time.perf_counter()

    def start(self, step: int) -> None:
        """Before the first row of a step, counted from 1."""
        every = self.options.measure_every
        self.sums, self._first, self._states = Sums(), None, {}
        self._measuring = every > 0 and step % every == 0

    def restart(self) -> None:
        """Training begins now."""
        self._ended = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """So many seconds since the last step do not count as training."""
        self._ended += seconds

    @property
    def wants_row(self) -> bool:
        """Whether states and gradients of the row to come are looked at: those of the first row."""
        return self._measuring and self.sums.rows == 0

    def add(self, segment: PackedBatch, loss: TokenLoss) -> None:
        """Counts what was learned from."""
        self.sums.add(segment, loss)
        if loss.states is not None:
            self._states = state_norms(loss.states)

    def add_first_gradient(self, norm: float, targets: float, *, reduced: bool, device: torch.device) -> None:
        """From the norm of the summed gradient after this rank's first row and the row's targets, for the noise:
        averaged over the ranks, or of the rows of all of them where gradients are `reduced` already. Collective."""
        ranks = world_size()
        if reduced:
            targets = sum_over_ranks([targets], device)[0]
            self._first = (norm * ranks / max(1.0, targets)) ** 2, targets
        else:
            square, targets = sum_over_ranks([(norm / max(1.0, targets)) ** 2, targets], device)
            self._first = square / ranks, targets / ranks

    def metrics(self, model: AuroraModel, sums: Sums, norms: Mapping[str, float], device: torch.device
                ) -> dict[str, float]:
        """Of a step that has ended, from its sums over all ranks. Collective when sharded."""
        now = time.perf_counter()
        seconds, self._ended = now - self._ended, now
        self.flops = self.arithmetic.training(model, frames=sums.frames, positions=sums.tokens,
                                              targets=sums.targets) / world_size()
        peak = peak_flops(device, self.options.peak_tflops)
        return {
            "grad_norm": total_norm(norms), **sums.rates(seconds), "samples": sums.samples, "targets": sums.targets,
            "seconds": seconds, "memory_gib": peak_memory(device) / 2**30, "teraflops": self.flops / seconds / 1e12,
            **({} if peak is None else {"mfu": self.flops / seconds / peak}),
            **{f"grad_norm_{slot}": norms.get(slot, 0.0) for slot in WEIGHTED_SLOTS
               if any(parameter.requires_grad for parameter in getattr(model, slot).parameters())},
        }

    def measurements(self, model: AuroraModel, sums: Sums, norms: Mapping[str, float]) -> dict[str, float]:
        """Of the same step: norms of weights and states, and the gradient noise. Collective when sharded."""
        if not self._measuring:
            return {}
        weights = _norms(model, lambda p: p.detach() if p.requires_grad else None)
        found = {f"weight_norm_{slot}": norm for slot, norm in weights.items()} | self._states
        noise = None if self._first is None else Noise.between(self._first, (total_norm(norms) ** 2, sums.targets))
        return found | ({} if noise is None else {"noise_trace": noise.trace, "noise_square": noise.square})
