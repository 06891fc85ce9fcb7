"""AuroraModule: trains and validates an AuroraModel over optimizer steps, as a LightningModule."""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from aurora.config import differences
from aurora.errors import AuroraError
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.recipe import Recipe, TrainerOptions
from aurora.steps import Step
from aurora.training.budget import Arithmetic
from aurora.training.checkpoint.io import RESTORE, AuroraCheckpointIO
from aurora.training.checkpoint.layout import Checkpoint
from aurora.training.checkpoint.run_folder import WEIGHTS_BY
from aurora.training.checkpoint.state import (
    named_tensors,
    optimizer_scalars,
    restore,
    settle_progress,
    trained_parameters,
)
from aurora.training.distributed.collectives import cpu_group, world_size
from aurora.training.distributed.precision import LossScale, loss_scale_for
from aurora.training.distributed.strategies import (
    FSDP2,
    apply_sharding,
    free_gathered,
    gradient_sync,
    is_sharded,
    prepare_blocks,
    shows_gradients,
)
from aurora.training.metrics import StepMeter, Sums, gradient_norms, total_norm, validation_metrics
from aurora.training.optim import Average, StepGuard, build_optimizer, build_schedule, set_trainable
from aurora.training.segments import segments, with_equal_frames
from aurora.training.sequence_parallel import SequenceParallelGroup, read_together
from aurora.types import PackedBatch, State, TokenLoss

_INSTEAD = "To start from its weights: `aurora export {} FOLDER`, and init_from=FOLDER"


class StepInterrupted(Exception):
    """Training was asked to stop inside of a step, which was given up: the weights are those of the step before."""


class AuroraModule(L.LightningModule):
    """Trains the slots and adapters that a recipe names. A batch is a `Step`: one optimizer step.

    Every row adds the gradient of its summed loss; the end of the step divides by the number of targets over all rows
    and ranks, so that every target counts alike. A step whose loss or gradient is not finite, or whose loss is a spike,
    is skipped on every rank: the optimizer is stepped without gradients, so that `trainer.global_step`, the schedule
    and the data keep pace.
    """

    automatic_optimization = False
    meter: StepMeter  # of the steps; there once `configure_model` has run

    def __init__(self, model: AuroraModel | Callable[[], AuroraModel], *, recipe: Recipe,
                 options: TrainerOptions | None = None, stage: str = "stage", seed: int = 0,
                 row_tokens: int | None = None, hyper_parameters: Mapping[str, Any] | None = None) -> None:
        """`model` may be a function that builds it, called once in `configure_model`. `row_tokens` is the most that a
        row holds, where that is known; `hyper_parameters` go into checkpoints."""
        super().__init__()
        if hyper_parameters is not None:
            self.save_hyperparameters(dict(hyper_parameters), logger=False)
        self.recipe, self.options, self.stage, self.seed = recipe, options or TrainerOptions(), stage, seed
        self.strict_loading = False  # frozen weights are in no checkpoint
        self.model: AuroraModel | None = None
        self.average: Average | None = None
        self.rows_read = 0  # rows trained on and validated on so far: the watchdog's heartbeat
        self.skipped = self.skipped_in_a_row = 0
        self.loss_scale = LossScale()
        self.guard = StepGuard(self.options.spike)
        self.interrupted = False  # set from outside: give up the step after the row at hand
        self.consistent = True  # whether weights, optimizer and data position are those of one step
        self._build, self._row_tokens = model, row_tokens
        self._sequence_group: SequenceParallelGroup | None = None  # ranks that read a row together
        self._memory: State | None = None  # of the sequence that the last row left open
        self._pending: Checkpoint | None = None  # to be restored as soon as there is a model on its device
        self._fitting = False
        self.metrics: dict[str, float] = {}  # of the last step
        self._validation: ExitStack | None = None
        self._val_sums: list[Sums] = []
        self._paused = 0.0

    # ---- building ----

    def setup(self, stage: str) -> None:
        """Checkpoints are safetensors and JSON, whoever's trainer this is."""
        strategy = self.trainer.strategy
        if not isinstance(strategy.checkpoint_io, AuroraCheckpointIO):
            strategy.checkpoint_io = AuroraCheckpointIO(report=self.print)

    def configure_model(self) -> None:
        if self.model is not None:
            return
        model = self._build if isinstance(self._build, nn.Module) else self._build()
        assert isinstance(model, AuroraModel)
        set_trainable(model, self.recipe)
        # before sharding, which hides the shapes of states
        self.meter = StepMeter(Arithmetic.of(model, self.recipe.keep_ratio), self.options)
        prepare_blocks(model, self.options)
        if self.options.sequence_parallel > 1:
            self._sequence_group = SequenceParallelGroup(self.options.sequence_parallel)
            read_together(model.backbone, self._sequence_group)
        apply_sharding(model, self._strategy, self.options)
        self.model = model

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, Any]]]:
        set_trainable(self.net, self.recipe)
        optimizer = build_optimizer(self.stage, self.net, self.recipe, fused=not isinstance(self._strategy, FSDP2))
        # a step may be skipped, but not left out of the schedule
        schedule = build_schedule(self.stage, optimizer, self.recipe, max(1, self._total_steps()))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _total_steps(self) -> int:
        """Optimizer steps by the trainer's `max_steps` and `max_epochs` and the data. AuroraError when without end."""
        trainer, data = self.trainer, self.trainer.datamodule
        if trainer.max_steps == trainer.max_epochs == -1:
            raise AuroraError("Trainer(max_epochs=-1) has no end that the learning rate could fall to; give max_steps, "
                              "or the number of passes over the stage as max_epochs")
        if trainer.max_steps != -1 and (trainer.max_epochs == -1 or not isinstance(data, DataModule)):
            return int(trainer.max_steps)
        if not isinstance(data, DataModule):
            return int(trainer.estimated_stepping_batches)
        # not `estimated_stepping_batches`: it makes the loader before Lightning restores its state
        steps, limit = data.total_steps(), trainer.limit_train_batches
        steps = min(steps, limit) if isinstance(limit, int) else int(steps * limit)
        total = steps * max(1, trainer.max_epochs)
        return int(total if trainer.max_steps == -1 else min(total, trainer.max_steps))

    def on_fit_start(self) -> None:
        self._fitting = True
        self.loss_scale = loss_scale_for(self.trainer.precision_plugin, self._row_tokens)
        self.average = None if self.recipe.average is None else Average(self.net, self.recipe.average)
        self.checkpoint_io.group = cpu_group() if is_sharded(self._strategy) else None
        self.checkpoint_io.start()
        self._restore()

    def on_train_start(self) -> None:
        self.meter.restart()

    def teardown(self, stage: str) -> None:
        """AuroraError when the last checkpoint could not be written."""
        self._fitting = False
        self.checkpoint_io.finish()

    @property
    def net(self) -> AuroraModel:
        """The model; there once `configure_model` has run."""
        assert self.model is not None
        return self.model

    @property
    def flops_per_batch(self) -> int:
        """Of the last step and this process, for Lightning's ThroughputMonitor."""
        return int(self.meter.flops)

    # ---- a step ----

    def on_train_batch_start(self, batch: Step, batch_idx: int) -> None:
        """Randomness is a function of the step, so that there is no generator to save."""
        self._seed(self.trainer.global_step)
        self._memory = None
        self.meter.start(self.trainer.global_step + 1)

    def training_step(self, step: Step, batch_idx: int) -> dict[str, Tensor]:
        """Learns from every row, then takes the step. Returns the mean loss per target, over all ranks."""
        begun = time.perf_counter()
        for row in step:
            self.meter.sums.data_wait += time.perf_counter() - begun
            self.learn(self._strategy.batch_to_device(row))
            if self.interrupted and not row.closes_step:
                self.optimizers().zero_grad()
                raise StepInterrupted
            begun = time.perf_counter()
        self.consistent = False
        sums = self.meter.sums.over_ranks(self.device)
        self.metrics = self.take_step(sums)
        self.consistent = True
        self._require_progress()
        self.log_dict(_float64(self.metrics), on_step=True, on_epoch=False)
        return {"loss": torch.tensor(sums.mean_loss)}

    def learn(self, row: PackedBatch) -> None:
        """Adds the gradient of the row's summed loss."""
        for segment in self._segments(row):
            looked_at = self.meter.wants_row
            with gradient_sync(self._strategy, self.net, self.options, closes=segment.closes_step):
                loss = self._loss(segment._replace(return_states=looked_at))
                # a row of text reaches nothing that is trained while only the encoder or the connector is
                if loss.total.requires_grad:
                    # in the dtypes that the forward pass chose: autocast would narrow what it kept wide
                    with torch.autocast(self.device.type, enabled=False):
                        self.manual_backward(loss.total * self.loss_scale.factor)
            if self._sequence_group is not None:
                self._sequence_group.finish()
            self.meter.add(segment, loss)
            if looked_at and not segment.closes_step and shows_gradients(self._strategy, self.options):
                norm = total_norm(gradient_norms(self.net)) / self.loss_scale.factor
                self.meter.add_first_gradient(norm, float(loss.count), reduced=is_sharded(self._strategy),
                                              device=self.device)
        self.rows_read += 1

    def _segments(self, row: PackedBatch) -> list[PackedBatch]:
        """What is learned from at once: the row, its TBPTT segments, or this rank's slice. Collective."""
        if self._sequence_group is not None:
            return [self._sequence_group.share(row)]
        return segments(row, self.options.backprop_tokens, self.device)

    def _loss(self, segment: PackedBatch) -> TokenLoss:
        """Collective, as are the model's own collectives."""
        assert not segment.continues or self._memory or self._sequence_group, "a row continues what no row left open"
        loss: TokenLoss = self.net(with_equal_frames(segment, self.net), self._memory)
        self._memory = None if self._sequence_group else loss.memory
        return loss

    def take_step(self, sums: Sums) -> dict[str, float]:
        """Divides by the targets of all rows and ranks, clips, steps optimizer and schedule; the step metrics."""
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        # DDP and FSDP average over the ranks, the recipe's mean is over targets
        scale = world_size() / max(1.0, sums.targets) / self.loss_scale.factor
        norms = {slot: norm * scale for slot, norm in gradient_norms(self.net).items()}
        norm, optimizer, schedule = total_norm(norms), self.optimizers(), self.lr_schedulers()
        group = optimizer.param_groups[0]
        rate = float(group["lr"]) / float(group["scale"])  # of slots and adapters whose `lr_scale` is 1
        taken = self._may_take(sums, norm)
        if taken and gradients:
            clip = self.recipe.clip
            within = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
            torch._foreach_mul_(gradients, scale * within)
        if not taken:
            optimizer.zero_grad()
        optimizer.step()
        if taken and self.average is not None:
            self.average.update(self.trainer.global_step)
        metrics = self.meter.metrics(self.net, sums, norms, self.device)
        if found := self.meter.measurements(self.net, sums, norms):
            # past `log_dict`, which would log them again with every later step
            for logger in self.loggers:
                logger.log_metrics(found, step=self.trainer.global_step)
        optimizer.zero_grad()
        if isinstance(schedule, LRScheduler) and not isinstance(schedule, ReduceLROnPlateau):
            schedule.step()
        # samples that could not be read and workers that died, on this rank, where the data module counts them
        counts: Mapping[str, int] = getattr(self.trainer.datamodule, "counts", dict)()
        # `step` is the axis of Lightning's loggers
        return {"step": float(self.trainer.global_step), "loss": sums.mean_loss, "lr": rate, **metrics,
                "skipped": float(self.skipped), **self.loss_scale.metrics(),
                **{name: float(count) for name, count in counts.items()}}

    def _may_take(self, sums: Sums, norm: float) -> bool:
        skip_reason = self.guard.skip_reason(sums.loss, sums.targets, norm)
        overflowed = self.loss_scale.overflowed(sums.loss, norm)
        if skip_reason is None:
            self.skipped_in_a_row = 0
        elif not overflowed:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            self._skip_reason = skip_reason
        return skip_reason is None

    def _require_progress(self) -> None:
        """AuroraError after too many bad steps in a row."""
        if self.skipped_in_a_row >= self.options.max_bad_steps:
            raise AuroraError(
                f"{self.skipped_in_a_row} steps in a row {self._skip_reason}, the last one being step "
                f"{self.trainer.global_step}. The weights are those before them. A lower peak_lr, clip or "
                "precision=32-true may help; raise trainer.max_bad_steps to tolerate more")

    def on_train_batch_end(self, outputs: Any, batch: Step, batch_idx: int) -> None:
        """Any rank may ask to stop; all stop together, or the others would wait in a collective."""
        self.trainer.should_stop = self._strategy.reduce_boolean_decision(self.trainer.should_stop, all=False)

    def _seed(self, step: int) -> None:
        """Seeds every generator by the seed of the run, the step and the rank."""
        seed = (self.seed * 1_000_003 + step) * 4_099 + self.global_rank
        # torch.manual_seed would also queue a call with its stack for every accelerator that is not in use
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    # ---- validation ----

    def on_validation_epoch_start(self) -> None:
        """The average of the weights is validated where there is one; what is random is alike in every validation."""
        self._restore()
        self._paused = time.perf_counter()
        self._val_sums, self._memory, self._validation = [], None, ExitStack()
        if self.average is not None:
            self._validation.enter_context(self.average.in_place())
        self._seed(0)

    def validation_step(self, step: Step, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The summed loss of the rows of a step."""
        while len(self._val_sums) <= dataloader_idx:
            self._val_sums.append(Sums())
            self._memory = None
        for row in step:
            for segment in self._segments(self._strategy.batch_to_device(row)):
                self._val_sums[dataloader_idx].add(segment, self._loss(segment))
                if self._sequence_group is not None:
                    self._sequence_group.finish()
            self.rows_read += 1
            if self.interrupted:
                raise StepInterrupted

    def on_validation_epoch_end(self) -> None:
        names = getattr(self.trainer.datamodule, "held_out", {})
        named = list(names) if len(names) == len(self._val_sums) else [str(n) for n in range(len(self._val_sums))]
        sums = {name: one.over_ranks(self.device) for name, one in zip(named, self._val_sums, strict=True)}
        self.leave_validation()
        metrics = {"step": float(self.trainer.global_step), **validation_metrics(sums)}
        if not self.trainer.sanity_checking:
            self.log_dict(_float64(metrics), on_step=False, on_epoch=True, batch_size=1)
            schedule = self.lr_schedulers() if self._fitting else None
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(metrics["val_loss"])

    def leave_validation(self) -> None:
        """Puts the weights back where the average was; training goes on as if there had been no validation."""
        if self._validation is not None:
            self._validation.close()
            self._validation = None
            free_gathered(self.net)
            self._memory = None
            self.meter.pause(time.perf_counter() - self._paused)

    # ---- checkpoints ----

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of the trained parameters: what is frozen is read again from where the stage started."""
        trained = {f"model.{name}" for name in trained_parameters(self.net)}
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name in trained}

    def named_tensors(self) -> dict[str, Tensor]:
        """Weights, their average and the optimizer's state by name, sharded as they are."""
        return named_tensors(self.net, self._bare_optimizer(), self._averages)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tensors by name; the rest as values for JSON."""
        self.leave_validation()
        optimizer = self._bare_optimizer()
        checkpoint["state_dict"] = self.named_tensors()
        checkpoint.pop("optimizer_states", None)
        checkpoint["optimizer"] = None if optimizer is None else optimizer_scalars(self.net, optimizer)
        checkpoint["training"] = {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row,
                                  "guard": self.guard.state_dict(), "loss_scale": self.loss_scale.state_dict()}
        settle_progress(checkpoint["loops"], validating=self.trainer.validating)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if RESTORE not in checkpoint:
            raise AuroraError("this is not a checkpoint of an AuroraModule; `aurora convert` reads weights of others")
        self._require_same_training(checkpoint[RESTORE].path, checkpoint.get("hyper_parameters", {}))
        training = checkpoint["training"]
        self.skipped, self.skipped_in_a_row = training["skipped"], training["skipped_in_a_row"]
        self.guard.load_state_dict(training["guard"])
        self._pending = checkpoint[RESTORE]
        if self._fitting:
            self._restore()

    def _require_same_training(self, path: Path, before: Mapping[str, Any]) -> None:
        """AuroraError for a checkpoint of another stage or configuration. Its frozen weights are not in it, and where
        training goes on, rates and data of this one would be passed over."""
        if not before.get("fingerprint") or not self.hparams.get("fingerprint"):
            return
        if before["stage"] != self.stage:
            raise AuroraError(f"ckpt_path: {path} is of stage {before['stage']!r}, and the module trains "
                              f"{self.stage!r}. {_INSTEAD.format(path)}")
        written, own = before["fingerprint"], self.hparams["fingerprint"]
        if self.trainer.state.fn != TrainerFn.FITTING:  # what is learned from, and how, is nothing to a validation
            written, own = ({key: one.get(key) for key in WEIGHTS_BY} for one in (written, own))
        changed = differences(written, own)
        if changed:
            raise AuroraError(f"ckpt_path: {path} was written with another configuration: {'; '.join(changed)}. Set it "
                              f"back. {_INSTEAD.format(path)}")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **options: Any) -> "AuroraModule":
        """AuroraError: a checkpoint holds the trained weights only, and its stage knows where the others are."""
        raise AuroraError("AuroraModule.load_from_checkpoint: aurora.training_module(config, stage) builds the module, "
                          "and trainer.fit(..., ckpt_path=) or trainer.validate(..., ckpt_path=) fills it; `aurora "
                          "export CHECKPOINT FOLDER` makes a model of a checkpoint")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Fills weights, their average and the optimizer in place. Collective when sharded."""
        restore(checkpoint, self.net, self._bare_optimizer() if self._fitting else None, self._averages,
                sharded=is_sharded(self._strategy))

    def _restore(self) -> None:
        if self._pending is not None:
            self.restore(self._pending)
            self.loss_scale.load_state_dict(self._pending.state["training"]["loss_scale"])
            self._pending = None

    def _bare_optimizer(self) -> Optimizer | None:
        return next(iter(self.trainer.optimizers), None)

    @property
    def _averages(self) -> dict[str, Tensor]:
        return {} if self.average is None else self.average.values

    @property
    def checkpoint_io(self) -> AuroraCheckpointIO:
        """Ours; there once `setup` has run."""
        io = self._strategy.checkpoint_io
        assert isinstance(io, AuroraCheckpointIO)
        return io

    @property
    def _strategy(self) -> Strategy:
        return self.trainer.strategy


def _float64(metrics: Mapping[str, float]) -> dict[str, Tensor]:
    """As tensors that Lightning does not round to float32; on the CPU, so that no GPU is waited for."""
    return dict(zip(metrics, torch.tensor([*metrics.values()], dtype=torch.float64).unbind(), strict=True))
