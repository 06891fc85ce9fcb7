"""`aurora train`: the stages of a run, each starting from the model of the one before."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from rich.console import Console
from torch import Tensor

from aurora.assemble import count_parameters
from aurora.config import Config
from aurora.errors import AuroraError
from aurora.files import require_room
from aurora.interfaces import DataModule
from aurora.mixture import Mixture
from aurora.registry import WEIGHTED_SLOTS
from aurora.training.budget import disk, memory, overrides_that_fit, require_fit
from aurora.training.callbacks import build_callbacks, build_loggers, failures_named, stopping_reason
from aurora.training.callbacks.checkpointing import RunCheckpoint
from aurora.training.callbacks.preemption import KILLED, Preemption, requeue, requeued_at_once
from aurora.training.callbacks.progress import progress_callbacks
from aurora.training.callbacks.watchdog import STACKS, Watchdog
from aurora.training.checkpoint.layout import (
    Checkpoint,
    checkpoint_path,
    is_committed,
    newest_checkpoint,
    refuse_unsafe_loading,
)
from aurora.training.checkpoint.run_folder import locked, require_same
from aurora.training.checkpoint.state import whole
from aurora.training.distributed.collectives import (
    destroy_process_group,
    on_all_ranks,
    on_rank_zero,
    peer_failures_reported,
    rank_zero,
)
from aurora.training.distributed.precision import precision, require_bfloat16
from aurora.training.distributed.rendezvous import (
    Rank,
    environment_kept,
    init_process_group,
    local_devices,
    rank_from_env,
    require_equal,
    require_free_port,
    require_layout,
)
from aurora.training.distributed.strategies import build_strategy
from aurora.training.module import AuroraModule, StepInterrupted
from aurora.training.stage import QUARANTINE_FILE, Stage, build_data, build_module, plan_stages, total_steps
from aurora.weights.adapters import describe_adapters, merge_adapters, save_adapter
from aurora.weights.model_folder import save_model

ADAPTER_FOLDER = "adapter"
MAX_NAMES = 6  # of datasets in a line


def train(config: Config) -> Path:
    """Trains the stages that `config.stage` selects; returns the folder of the last model.

    Finished stages are skipped, an interrupted one resumes. SIGTERM, SIGUSR1 and ^C save and exit with 128 and their
    number; SIGUSR1 puts a job of SLURM back into its queue. Several processes first agree that all have the same config
    and code.
    """
    refuse_unsafe_loading()
    rank = rank_from_env()
    with environment_kept(), peer_failures_reported(Path(config.run) / STACKS, step=lambda: None):
        joined_before = dist.is_initialized()
        if rank is not None:
            init_process_group(rank, config.trainer)
        model = _train_stages(config, rank)
        # also where Lightning has started the others: a process that exits inside of its groups aborts now and then
        if not joined_before:
            destroy_process_group()
    return model


def _train_stages(config: Config, rank: Rank | None) -> Path:
    console = Console(quiet=not rank_zero(), soft_wrap=True, highlight=False, markup=False)
    with requeued_at_once(first=rank_zero(), report=console.print), _quiet_lightning():
        if rank is not None:
            require_equal(config)
        stages = on_all_ranks(lambda: _startable(config, rank))
        if config.trainer.threads is not None:
            torch.set_num_threads(config.trainer.threads)
        for stage in stages:
            with ExitStack() as stack:
                lock = locked(stage.folder.path, patience=stage.options.rendezvous_seconds, report=console.print)
                on_rank_zero(partial(stack.enter_context, lock))
                _train_stage(stage, console)
    return stages[-1].folder.model


def _startable(config: Config, rank: Rank | None) -> list[Stage]:
    """The selected stages. AuroraError also for what this machine cannot do, or a GPU has no room for."""
    stages = plan_stages(config, rank)
    if require_layout(stages[0].options, 1 if rank is None else rank.nodes) > 1 and rank is None:
        require_free_port()
    require_bfloat16(stages[0].options)
    for stage in stages:
        if stage.folder.finished() is None or config.restart:
            _require_memory(stage)
    return stages


def _train_stage(stage: Stage, console: Console) -> None:
    if stage.config.restart:
        on_rank_zero(stage.folder.clear)
    if on_all_ranks(lambda: _is_finished(stage, console)):
        return
    resume = on_all_ranks(lambda: _resumable(stage, console))
    module, data = build_module(stage), on_all_ranks(lambda: _prepared_data(stage, resume, console))
    fit(stage, module, data, resume, console)
    bad = data.counts().get("bad_samples", 0)
    if bad:
        console.print(f"{stage.name}: {bad} samples could not be read and were left out; "
                      f"they are listed in {stage.folder.path / QUARANTINE_FILE}")
    weights = _trained_weights(module)
    on_rank_zero(lambda: _save(stage, weights))
    console.print(f"{stage.name}: done, {stage.folder.model}")


def _is_finished(stage: Stage, console: Console) -> bool:
    """Whether the stage was trained before. AuroraError when that was with another configuration."""
    done = stage.folder.finished()
    if done is not None:
        require_same(stage.name, done, stage.fingerprint, "finished")
        console.print(f"{stage.name}: finished before, {stage.folder.model}; restart=true trains it again")
    return done is not None


def _resumable(stage: Stage, console: Console) -> Checkpoint | None:
    """The checkpoint to resume from, if any. AuroraError when the stage was begun with another configuration."""
    resume = newest_checkpoint(stage.folder.checkpoints, console.print, verify=rank_zero())
    if resume is not None:
        before = resume.state.get("hyper_parameters", {}).get("fingerprint")
        if before is None:
            raise AuroraError(f"{resume.path} does not say what it was trained with: another version of Aurora or "
                              "another trainer wrote it; restart=true begins the stage again, another run= keeps it")
        require_same(stage.name, before, stage.fingerprint, "begun")
    return resume


def _prepared_data(stage: Stage, resume: Checkpoint | None, console: Console) -> DataModule:
    data = build_data(stage)
    steps, average = total_steps(stage, data), stage.recipe.average is not None
    require_room(stage.folder.path, disk(stage.skeleton, average=average) - stage.folder.bytes_on_disk())
    if rank_zero():
        stage.folder.write_config(stage.config)
    print_summary(console, stage, data, steps=steps, done=0 if resume is None else resume.step)
    if steps == 1 and stage.recipe.max_steps != 1:
        console.print(f"{stage.name}: takes a single step, because global_batch {stage.recipe.global_batch} takes in "
                      "all of its data; a smaller one, or more epochs, would train better")
    return data


# ---- Lightning's trainer ---------------------------------------------------------------------------------------


def fit(stage: Stage, module: AuroraModule, data: DataModule, resume: Checkpoint | None, console: Console) -> None:
    """Trains to the end of the stage, from `resume` on.

    Ends the process when a signal asked for that. AuroraError when a callback failed; LostProcess.
    """
    folder, options, stacks = stage.folder, stage.options, stage.folder.path / STACKS
    preemption, named = Preemption(), on_all_ranks(lambda: build_callbacks(options.callbacks))
    saver = RunCheckpoint(folder=folder.checkpoints, every=options.checkpoint_every, preemption=preemption,
                          report=console.print)
    for name, callback in named.items():
        if stage.recipe.validation is None and isinstance(callback, EarlyStopping):
            console.print(f"{stage.name}: trainer.callbacks.{name} acts after each validation, and this stage has none")
    callbacks: list[L.Callback] = [Watchdog(folder=stacks, seconds=options.watchdog_seconds), *named.values(),
                                   preemption, saver]
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks += progress_callbacks(options.progress, stage=stage.name, seconds=options.progress_seconds,
                                        console=console)
    done = 0 if resume is None else resume.step
    loggers = on_all_ranks(lambda: build_loggers(stage.config.logger, folder.path, done, console.print))
    trainer = build_trainer(stage, total_steps(stage, data), callbacks, loggers)
    with peer_failures_reported(stacks, step=lambda: trainer.global_step), \
            failures_named(named, stacks, step=lambda: trainer.global_step):
        try:
            trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else resume.path)
            if stage.recipe.validation is not None and saver.validated < trainer.global_step:
                # it was stopped while it validated the last step, after which Lightning has nothing left to do
                trainer.validate(module, data, verbose=False)
        except StepInterrupted:
            assert preemption.stopped is not None
    if preemption.stopped is not None:
        _exit_preempted(stage, trainer, preemption.stopped, console)
    if trainer.global_step < trainer.max_steps:
        console.print(f"{stage.name}: ended after step {trainer.global_step} of {trainer.max_steps} by "
                      f"{stopping_reason(named)}")


def _exit_preempted(stage: Stage, trainer: L.Trainer, stopped: signal.Signals, console: Console) -> None:
    saved = is_committed(checkpoint_path(stage.folder.checkpoints, trainer.global_step))
    where = "which is saved; the same command resumes there" if saved else \
        "which is not saved; the same command resumes from the last checkpoint"
    console.print(f"{stage.name}: stopped by {stopped.name} after step {trainer.global_step}, {where}")
    if stopped == signal.SIGUSR1 and rank_zero():
        requeue(console.print)
    # a launcher that sees one exit kills the others, which may still be writing; and a process that exits inside of its
    # groups aborts now and then, with another status
    destroy_process_group()
    sys.exit(KILLED + stopped)


def build_trainer(stage: Stage, steps: int, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """A Lightning trainer for one pass over the stage's steps. AuroraError for options that Lightning refuses."""
    options, nodes = stage.options, 1 if stage.rank is None else stage.rank.nodes
    dtypes, held_out = precision(options), stage.recipe.validation
    # the launcher's ranks, whatever Lightning would make of SLURM's variables by itself
    ranks = LightningEnvironment() if stage.rank is None else TorchElasticEnvironment()
    try:
        return L.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=nodes,
            strategy=build_strategy(options, nodes),
            plugins=[ranks, *dtypes.pop("plugins", [])],
            **dtypes,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=str(stage.folder.path),
            max_epochs=1,
            max_steps=steps,
            limit_val_batches=held_out.max_steps if held_out else 0,  # also for data without such an option
            check_val_every_n_epoch=None,
            val_check_interval=held_out.every if held_out else None,
            num_sanity_val_steps=0,
            inference_mode=False,  # which FSDP2 does not take
            log_every_n_steps=1,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise AuroraError(f"trainer: {error}") from error


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's hints about hardware and loaders out of what users read; its errors stay."""
    with warnings.catch_warnings(), ExitStack() as stack:
        for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # lightning 2.6 on torch 2.13, about its own code
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        # FSDP2 warns of views that are then written into; nothing writes into what a block returns
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view", category=UserWarning)
        yield


# ---- before and after ------------------------------------------------------------------------------------------


def _require_memory(stage: Stage) -> None:
    """AuroraError when a GPU has no room for the stage by our estimate."""
    options, data, rank = stage.options, stage.config.data, stage.rank
    if not options.check_memory or options.accelerator == "cpu" or not torch.cuda.is_available():
        return
    local = local_devices(options) if rank is None else rank.per_node
    given: dict[str, Any] = {
        "keep_ratio": stage.recipe.keep_ratio, "row_tokens": data.get("row_tokens", 0),
        "row_frames": data.get("row_frames", 0), "devices": local if rank is None else rank.world, "per_node": local,
        "average": stage.recipe.average is not None}
    needed = memory(stage.skeleton, options, **given)
    available = float(torch.cuda.get_device_properties(0).total_memory)
    require_fit(needed, available, stage.name, overrides_that_fit(stage.skeleton, options, available, **given))


def _trained_weights(module: AuroraModule) -> dict[str, Tensor]:
    """All weights of the model or, of what is averaged, the average: on the first rank. Collective."""
    weights = {name: whole(tensor) for name, tensor in module.net.state_dict().items()}
    if module.average is not None:
        weights |= {name: whole(tensor) for name, tensor in module.average.weights().items()}
    return weights if rank_zero() else {}


def _save(stage: Stage, weights: Mapping[str, Tensor]) -> None:
    """Writes the model of the stage, its adapters merged, the adapters alone, and that it is finished."""
    model, config = stage.skeleton, stage.config
    model.backbone.start_like({name: tensor.shape for name, tensor in weights.items()})
    model.load_state_dict(weights, assign=True)
    if stage.recipe.adapters:
        save_adapter(model, stage.folder.path / ADAPTER_FOLDER, config=config.model, adapters=stage.recipe.adapters,
                     trained=stage.recipe.trained, start=stage.initial or "base weights")
        merge_adapters(model)
    save_model(model, config.model, stage.folder.model)
    stage.folder.finish(stage.fingerprint)


# ---- summary ---------------------------------------------------------------------------------------------------


def print_summary(console: Console, stage: Stage, data: DataModule, *, steps: int, done: int) -> None:
    """What is trained, from where, on what and how: a wrong start is seen before it costs anything."""
    recipe, model, fill, samples = stage.recipe, stage.skeleton, data.fill(), data.samples()
    totals, trained = count_parameters(model), count_parameters(model, learned=True)
    parameters = "  ".join(f"{slot} {_short(trained[slot])}/{_short(totals[slot])}" for slot in WEIGHTED_SLOTS)
    unit, base = stage.config.data.get("batch_unit", "samples"), stage.config.base_paths()
    resumed = f"; resuming after step {done:,}" if done else ""
    lines = {
        "trained": f"{', '.join([*recipe.trained, *describe_adapters(model, recipe.adapters)])} "
                   f"(parameters trained/total: {parameters})",
        "weights": stage.initial or ", ".join(f"{slot}: {path or 'random'}" for slot, path in base.items()),
        "data": f"{_names(recipe.mixture)}, {recipe.epochs} epoch(s)"
                + ("" if samples is None else f", {samples:,} samples"),
        "steps": f"{steps:,}, each of about {recipe.global_batch:,} {unit}{resumed}",
        "packing": None if fill is None else f"{fill[0]:.1%} of tokens and {fill[1]:.1%} of frames are used",
        "validation": None if recipe.validation is None else
                      f"loss on {_names(recipe.validation.mixture)}, every {recipe.validation.every:,} steps",
        "peak lr": f"{recipe.peak_lr:.2e}",
        "keep ratio": f"{recipe.keep_ratio:g}",
    }
    console.print(stage.name)
    for key, value in lines.items():
        if value is not None:
            console.print(f"  {key:12}{value}")


def _names(mixture: Mixture) -> str:
    """As many as fit into a line."""
    names = [name if part.repeats == 1 else f"{name} ×{part.repeats}" for name, part in mixture.datasets.items()]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _short(count: int) -> str:
    """1234 → 1.2k: three units are enough for parameters."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.2f}{name}"
    return str(count)
