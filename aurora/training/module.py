"""AuroraModule: one stage of training over packed rows, as a LightningModule with manual optimization."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import AdamW

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.average import Average
from aurora.training.blocks import prepare_blocks
from aurora.training.checkpoints import CHECKPOINTS, Checkpoint, checkpoint_at
from aurora.training.flat import Flat, is_flat
from aurora.training.flops import Arithmetic, forward_flops, peak_flops, training_flops
from aurora.training.guard import StepGuard
from aurora.training.measures import (
    Noise,
    first_rows,
    gradient_norms,
    peak_memory,
    state_norms,
    total_norm,
    weight_norms,
)
from aurora.training.optim import build_optimizer, choose_learned, parameter_groups, set_rate
from aurora.training.parallel import from_first_rank, shared_group, with_agreed_frames, world_size
from aurora.training.pieces import pieces_of
from aurora.training.randomness import seed_step
from aurora.training.recipe import read_options, read_recipe
from aurora.training.scaler import build_loss_scale
from aurora.training.schedule import lr_factor
from aurora.training.sequence import Neighbours, read_together
from aurora.training.sharding import Sharded, gradients_when, laid_out, shows_gradients
from aurora.training.start import starting_model
from aurora.training.state import learned_tensors, optimizer_scalars, restore
from aurora.training.tally import StepReport, Tally
from aurora.types import PackedBatch, State, TokenLoss


class AuroraModule(L.LightningModule):
    """Trains the slots and adapters that a stage names.

    Every row adds the gradient of its summed loss; the row that closes a step divides by the number of targets of the
    whole step, over all rows and ranks, so that every target counts alike. A step whose loss or gradient is not
    finite, or whose loss is a spike, is skipped on every rank; as is one that a loss scale made overflow, which is none
    of the bad ones.
    """

    automatic_optimization = False

    def __init__(self, *, config: Mapping[str, Any], stage: str, total_steps: int, start: str | None = None) -> None:
        """`config` is the whole composed config; `start` a model folder, or None for the base weights."""
        super().__init__()
        self.save_hyperparameters({"config": dict(config), "stage": stage, "start": start}, logger=False)
        self.config = config
        self.stage = stage
        self.recipe = read_recipe(stage, config["stages"][stage])
        self.options = read_options(config["trainer"])
        self.total_steps = total_steps
        self.start = start
        self.model: AuroraModel | None = None
        self.resume: Checkpoint | None = None
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.report: StepReport | None = None
        self.measured: dict[str, float] = {}  # of the last step, beside its report
        self.average: Average | None = None
        self.guard = StepGuard(self.options.spike)
        self.loss_scale = build_loss_scale(self.options, config)
        self.changing = False  # true while the optimizer writes: the weights belong to no step then
        self._groups: list[dict[str, Any]] = []  # of the optimizer; there once the model is
        self._memory: State | None = None  # of the sequence that the last row left open
        self._neighbours: Neighbours | None = None  # ranks that read a row together
        self._tally = Tally()
        self._first: tuple[float, float] | None = None  # squared gradient norm and targets after a step's first row
        self._states: dict[str, float] = {}  # norms of the memory after the first row of a step that is measured
        self._arithmetic: Arithmetic | None = None
        self._row_ended = self._step_ended = time.perf_counter()

    # ---- building ----

    def configure_model(self) -> None:
        if self.model is not None:
            return
        model = starting_model(self.config, self.stage, self.recipe, self.start)
        self._arithmetic = forward_flops(model, self.recipe.keep_ratio)  # of states too, which shards do not show
        prepare_blocks(model, self.options)
        if self.options.sequence_parallel > 1:
            self._neighbours = Neighbours(self.options.sequence_parallel)
            read_together(model.backbone, self._neighbours)
        groups = parameter_groups(model, self.recipe)
        self.model = laid_out(model, self._strategy, self.options)
        # flat shards are of the same parameters, but do not show the shapes by which those decay
        self._groups = groups if is_flat(self.model) else parameter_groups(model, self.recipe)

    def configure_optimizers(self) -> AdamW:
        return build_optimizer(self._groups, self.recipe, fused=not isinstance(self._strategy, Sharded | Flat))

    def on_fit_start(self) -> None:
        choose_learned(self.net, self.recipe)
        if self.recipe.average is not None:
            self.average = Average(self.net, self.recipe.average)
        self._resume()
        seed_step(self.config["seed"], self.step, self.global_rank, self.device)
        self._row_ended = self._step_ended = time.perf_counter()

    @property
    def net(self) -> AuroraModel:
        """The model; there once `configure_model` has run."""
        assert self.model is not None
        return self.model

    @property
    def optimizer(self) -> AdamW:
        """The bare optimizer."""
        optimizer: AdamW = self.optimizers(use_pl_optimizer=False)
        return optimizer

    @property
    def rate(self) -> float:
        """The learning rate of the step to come."""
        return self.recipe.peak_lr * lr_factor(self.step, total=self.total_steps, warmup_ratio=self.recipe.warmup_ratio,
                                               start_factor=self.recipe.warmup_start_factor)

    # ---- rows ----

    def training_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self._tally.waited += time.perf_counter() - self._row_ended
        for piece in self._pieces(batch):
            self._learn_from(piece)
        if batch.closes_step:
            self._close_step(batch.position)

    def _pieces(self, batch: PackedBatch) -> list[PackedBatch]:
        """What is learned from at once: the row, its pieces, or this rank's slice."""
        if self._neighbours is not None:
            return [self._neighbours.share(batch)]
        return pieces_of(batch, self.options.backprop_tokens, self.device)

    def _learn_from(self, piece: PackedBatch) -> None:
        assert not piece.continues or self._memory or self._neighbours, "a row continues what no row before left open"
        with gradients_when(self._strategy, self.net, self.options, closes=piece.closes_step):
            loss = self._read(piece._replace(look=self._measuring and self._tally.rows == 0))
            # a row of text reaches nothing that learns while only the encoder or the connector does
            if loss.total.requires_grad:
                # in the dtypes that the forward pass chose: autocast would narrow what it kept wide
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(loss.total * self.loss_scale.factor)
        if self._neighbours is not None:
            self._neighbours.finish()
        self._tally.add(piece, loss)
        if loss.states is not None:
            self._states = state_norms(loss.states)
        looked_at = self._measuring and self._tally.rows == 1 and shows_gradients(self._strategy, self.options)
        if looked_at and not piece.closes_step:
            norm = total_norm(gradient_norms(self.net)) / self.loss_scale.factor
            self._first = first_rows(norm, float(loss.count), reduced=self.sharded, device=self.device)

    def _read(self, piece: PackedBatch) -> TokenLoss:
        """Collective, as are the model's own collectives."""
        loss: TokenLoss = self.net(with_agreed_frames(piece, self.net), self._memory)
        self._memory = None if self._neighbours else loss.memory
        return loss

    def losses(self, batch: PackedBatch) -> Iterator[tuple[PackedBatch, TokenLoss]]:
        """What a row is read in, and the loss of each part, for who learns nothing of it. Collective."""
        for piece in self._pieces(batch):
            yield piece, self._read(piece)
            if self._neighbours is not None:
                self._neighbours.finish()

    def go_on(self, *, paused: float) -> None:
        """To the next step, as if nothing else had been done for so many seconds."""
        self._memory = None
        self._step_ended, self._row_ended = self._step_ended + paused, self._row_ended + paused
        seed_step(self.config["seed"], self.step, self.global_rank, self.device)

    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        """Called after every callback's, so that saving does not count as waiting for data."""
        self._row_ended = time.perf_counter()

    def _close_step(self, position: tuple[int, int, int]) -> None:
        tally = self._tally.over_ranks(self.device)
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        # DDP and FSDP average over the ranks, the recipe's mean is over targets.
        scale = world_size() / max(1.0, tally.targets) / self.loss_scale.factor
        norms = {slot: norm * scale for slot, norm in gradient_norms(self.net).items()}
        norm = total_norm(norms)
        rate = self.rate
        objection = self.guard.objection(tally.loss, tally.targets, norm)
        overflowed = self.loss_scale.overflowed(tally.loss, norm)
        if objection is None:
            self._step_optimizer(gradients, scale, norm, rate)
        elif not overflowed:
            self._skip(objection)
        self.measured = self._measure(tally, norms)
        self.optimizer.zero_grad()
        self.step += 1
        self.trainer.datamodule.position = tuple(position)
        self._report(tally, norm, rate)
        seed_step(self.config["seed"], self.step, self.global_rank, self.device)

    def _step_optimizer(self, gradients: list[Tensor], scale: float, norm: float, rate: float) -> None:
        clip = self.recipe.clip
        within = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        if gradients:
            torch._foreach_mul_(gradients, scale * within)
        set_rate(self.optimizer, rate)
        self.changing = True
        self.optimizers().step()
        if self.average is not None:
            self.average.update(self.step)
        self.changing = False
        self.skipped_in_a_row = 0

    def _skip(self, objection: str) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.options.max_bad_steps:
            raise AuroraError(
                f"{self.skipped_in_a_row} steps in a row {objection}, the last one after step {self.step}. The weights "
                "are those before them. A lower peak_lr, clip or precision=32-true may help; trainer.max_bad_steps "
                "says how many are borne")

    def _report(self, tally: Tally, norm: float, rate: float) -> None:
        now = time.perf_counter()
        assert self._arithmetic is not None
        flops = training_flops(self.net, self._arithmetic, frames=tally.frames, positions=tally.tokens,
                               targets=tally.targets)
        self.report = StepReport.of(
            tally, step=self.step, lr=rate, grad_norm=norm, skipped=self.skipped, seconds=now - self._step_ended,
            memory=peak_memory(self.device), flops=flops, peak=peak_flops(self.device, self.options.peak_tflops))
        self._step_ended = now
        self._tally = Tally()

    @property
    def _measuring(self) -> bool:
        """Whether the step to come is one that is looked at closely."""
        every = self.options.measure_every
        return every > 0 and (self.step + 1) % every == 0

    def _measure(self, tally: Tally, norms: Mapping[str, float]) -> dict[str, float]:
        """Gradient norms by slot, the loss's scale; every so often norms of the weights and the gradient's noise."""
        found = {f"grad_norm_{slot}": norm for slot, norm in norms.items()} | self.loss_scale.measured()
        if self._measuring:
            found |= {f"weight_norm_{slot}": norm for slot, norm in weight_norms(self.net).items()} | self._states
            if self._first is not None:
                noise = Noise.between(self._first, (total_norm(norms) ** 2, tally.targets))
                found |= {} if noise is None else {"noise_trace": noise.trace, "noise_square": noise.square}
        self._first, self._states = None, {}
        return found

    # ---- state ----

    @property
    def sharded(self) -> bool:
        """Whether every process holds a part of the weights only."""
        return isinstance(self._strategy, Sharded | Flat) and world_size() > 1

    def tensors(self) -> dict[str, Tensor]:
        """What learns and what the optimizer keeps of it, as they are: sharded, and changed by the next step."""
        averages = {} if self.average is None else self.average.tensors()
        return learned_tensors(self.net, self.optimizer) | averages

    def counters(self) -> dict[str, Any]:
        """The rest of what continues the run exactly, in plain values."""
        return {"step": self.step, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row,
                "start": self.start, "losses": self.guard.state(), "loss_scale": self.loss_scale.state(),
                "optimizer": optimizer_scalars(self.net, self.optimizer)}

    def _resume(self) -> None:
        """Goes on from a checkpoint: the one that the first rank found whole."""
        step = from_first_rank(-1 if self.resume is None else self.resume.step)
        if step < 0:
            return
        if self.resume is None or self.resume.step != step:
            self.resume = checkpoint_at(Path(self.config["run"]) / self.stage / CHECKPOINTS, step)
            self.trainer.datamodule.load_state_dict(self.resume.state["data"])
        self.take_weights(self.resume)
        self.step = self.resume.state["step"]
        self.skipped = self.resume.state["skipped"]
        self.skipped_in_a_row = self.resume.state["skipped_in_a_row"]
        self.guard.restore(self.resume.state.get("losses", []))
        self.loss_scale.restore(self.resume.state.get("loss_scale", {}))
        self.resume = None

    def take_weights(self, checkpoint: Checkpoint) -> None:
        """Puts back the weights, their average and the optimizer's memory. Collective when sharded."""
        averages = {} if self.average is None else self.average.tensors()
        restore(self.net, self.optimizer, checkpoint, shared_group() if self.sharded else None, also=averages)

    @property
    def _strategy(self) -> Any:
        return self.trainer.strategy
