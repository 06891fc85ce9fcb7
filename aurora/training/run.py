"""`aurora train`: the stages of a run, each starting from the model of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.training.checkpoints import Checkpoint, newest_checkpoint, refuse_unsafe_loading, require_room
from aurora.training.data import (
    QUARANTINE_FILE,
    build_data,
    build_held_out,
    count_bad_samples,
    count_samples,
    row_fill,
)
from aurora.training.estimate import disk, memory, require_fit
from aurora.training.fit import Stage, fit
from aurora.training.folder import Fingerprint, StageFolder, base_paths, fingerprint, require_same
from aurora.training.head import describe_stage
from aurora.training.instantiate import check_entries
from aurora.training.launch import Place, find_place, fitted, join, refuse_restart, require_equal
from aurora.training.lock import held
from aurora.training.lost import lost_processes_told
from aurora.training.module import AuroraModule
from aurora.training.parallel import agreed, leave, local_devices
from aurora.training.precision import in_dtype, require_bfloat16
from aurora.training.recipe import (
    check_datasets,
    check_rows,
    check_seed,
    read_options,
    read_recipes,
    selected_stages,
)
from aurora.training.sharding import check_processes, require_layout
from aurora.training.signals import requeue_at_once
from aurora.training.start import skeleton
from aurora.training.state import all_weights, whole
from aurora.training.trainer import quiet_lightning
from aurora.training.user_callbacks import check_callbacks
from aurora.training.validation import VALIDATION
from aurora.training.watchdog import STACKS
from aurora.weights.adapter_folder import save_adapter
from aurora.weights.adapters import merge_adapters
from aurora.weights.io import weight_files
from aurora.weights.model_folder import read_config, save_model

ADAPTER_FOLDER = "adapter"


def train(config: Mapping[str, Any]) -> Path:
    """Trains the stages that `config["stage"]` asks for; gives the folder of the last model.

    Finished stages are skipped, an interrupted one goes on where it was. SIGTERM, SIGUSR1 and ^C save and exit with
    128 and their number; SIGUSR1 puts a job of SLURM back into its queue. With other processes they first agree that
    all were given the same.
    """
    refuse_unsafe_loading()
    place = find_place()
    with lost_processes_told(Path(config["run"]) / STACKS, step=lambda: None):
        met_before = dist.is_initialized()
        if place is not None:
            join(place, read_options(config["trainer"]))
        model = _train_together(config, place)
        # also where Lightning has started the others: a process that ends inside of its groups aborts now and then
        if not met_before:
            leave()
    return model


def _train_together(config: Mapping[str, Any], place: Place | None) -> Path:
    console = Console(quiet=_rank() != 0, soft_wrap=True, highlight=False, markup=False)
    requeue_at_once(first=_rank() == 0, tell=console.print)
    if place is not None:
        require_equal(config)
    stages = agreed(lambda: _startable(config, place))
    if stages[0].options.threads is not None:
        torch.set_num_threads(stages[0].options.threads)
    with quiet_lightning():
        for stage in stages:
            with ExitStack() as stack:
                _hold(stage, stack, console)
                _train_stage(stage, console)
    return stages[-1].folder.model


def _startable(config: Mapping[str, Any], place: Place | None) -> list[Stage]:
    """The selected stages. AuroraError also for what this machine is not made for, or a GPU has no room for."""
    stages = plan_stages(config, place)
    require_layout(stages[0].options, 1 if place is None else place.nodes)
    require_bfloat16(stages[0].options)
    for stage in stages:
        if stage.folder.finished() is None or config.get("restart", False):
            _require_memory(stage, skeleton(stage.config, stage.name, stage.recipe))
    return stages


def plan_stages(config: Mapping[str, Any], place: Place | None = None, *, worlds: Sequence[int] = ()) -> list[Stage]:
    """The selected stages in order. AuroraError for whatever in the config makes no sense, before anything starts.

    `worlds` are the numbers of processes that a launcher may start.
    """
    recipes = read_recipes(config)
    options = fitted(read_options(config["trainer"]), place)
    refuse_restart(config, launched=place is not None or bool(worlds))
    for processes in worlds:
        check_processes(options, processes)
    check_seed(config["seed"])
    if not config["run"]:
        raise AuroraError("run is empty; it names the folder that training writes into, such as run=runs/mine")
    check_entries("logger", config["logger"] or {}, Logger)
    config = in_dtype(config, options)
    names = selected_stages(config, recipes)
    check_callbacks(options.callbacks, validated=any(recipes[name].validation for name in names))
    check_datasets(config, {name: recipes[name] for name in names})
    check_rows(config, options)
    stages = []
    for name in names:
        given = config.get("init_from") if name == names[0] else None
        start = given or _model_before(config["run"], name, recipes[name].after, names)
        _check_start(config, given, start)
        stages.append(Stage(name, config, recipes[name], options, StageFolder(config["run"], name), start, place))
        _check_merge(stages[-1])
    return stages


def _model_before(run: str, name: str, after: str | None, selected: list[str]) -> str | None:
    if after is None:
        return None
    folder = StageFolder(run, after)
    if after not in selected and folder.finished() is None:
        raise AuroraError(f"stage {name!r} starts from the model of {after!r}, and {folder.model} is not there; "
                          f"`aurora train run={run} stage={after}` trains it, or give init_from=MODEL_FOLDER")
    return str(folder.model)


def _check_merge(stage: Stage) -> None:
    """AuroraError when the model cannot be built, or its blocks cannot merge as much as the stage asks for."""
    model = skeleton(stage.config, stage.name, stage.recipe)
    patches = model.vision.prepare.patches(model.vision.prepare.size, model.vision.prepare.size)
    keep = model.merge.keep(patches, model.vision.depth, stage.recipe.keep_ratio)
    try:
        model.merge.schedule(patches, model.vision.depth, keep)
    except AuroraError as error:
        raise AuroraError(f"stages.{stage.name}.keep_ratio {stage.recipe.keep_ratio}: {error}") from error


def _check_start(config: Mapping[str, Any], given: str | None, start: str | None) -> None:
    """AuroraError when the weights that a stage starts from are not there."""
    if given is not None:
        read_config(given)
    if start is None:
        for slot, path in base_paths(config).items():
            if path is None:
                continue
            if not Path(path).exists():
                raise AuroraError(f"base_weights.{slot}.{config[slot]['name']}: {path} does not exist")
            weight_files(Path(path))


def _hold(stage: Stage, stack: ExitStack, console: Console) -> None:
    """Sees to it that no other run writes into the folder of the stage until the stack ends."""
    lock = held(stage.folder.path, patience=stage.options.rendezvous_seconds, tell=console.print)
    agreed(lambda: stack.enter_context(lock) if _rank() == 0 else None)


class Prepared(NamedTuple):
    """What a stage is trained with."""

    module: AuroraModule
    data: DataModule
    held_out: dict[str, DataModule]
    fingerprint: Fingerprint


def _train_stage(stage: Stage, console: Console) -> None:
    if stage.config.get("restart", False):
        agreed(lambda: stage.folder.clear() if _rank() == 0 else None)
    prepared = agreed(lambda: _prepare(stage, console))
    if prepared is None:
        return
    module, data, held_out, now = prepared
    fit(stage, module, data, held_out, now, console)
    bad = count_bad_samples(data)
    if bad:
        console.print(f"{stage.name}: {bad} samples could not be read and were left out; "
                      f"they are listed in {stage.folder.path / QUARANTINE_FILE}")
    weights = _trained_weights(module)
    agreed(lambda: _save(stage, weights, now) if module.global_rank == 0 else None)
    console.print(f"{stage.name}: done, {stage.folder.model}")


def _prepare(stage: Stage, console: Console) -> Prepared | None:
    """None when the stage was finished before. AuroraError when it cannot go on from what is there."""
    now = fingerprint(stage.config, stage.name, stage.start)
    done = stage.folder.finished()
    if done is not None:
        require_same(stage.name, done, now, "finished")
        console.print(f"{stage.name}: finished before, {stage.folder.model}; restart=true trains it again")
        return None
    resume = newest_checkpoint(stage.folder.checkpoints, console.print, verify=_rank() == 0)
    if resume is not None:
        require_same(stage.name, resume.state["fingerprint"], now, "begun")
    model = skeleton(stage.config, stage.name, stage.recipe)
    data = build_data(stage.config, stage.recipe, model, stage.folder.path)
    held_out = build_held_out(stage.config, stage.recipe, model, stage.folder.path / VALIDATION)
    if resume is not None:
        data.load_state_dict(resume.state["data"])
    require_room(stage.folder.path, disk(model, average=stage.recipe.average is not None) - stage.folder.size())
    if _rank() == 0:
        stage.folder.describe(stage.config)
    module = _module(stage, data, resume)
    describe_stage(console, stage=stage.name, recipe=stage.recipe, config=stage.config, model=model,
                   samples=count_samples(data, stage.recipe), fill=row_fill(data), steps=module.total_steps,
                   done=0 if resume is None else resume.step, start=stage.start)
    if module.total_steps == 1 and stage.recipe.max_steps != 1:
        console.print(f"{stage.name}: takes a single step, because global_batch {stage.recipe.global_batch} takes in "
                      "all of its data; a smaller one, or more epochs, would learn more")
    return Prepared(module, data, held_out, now)


def _require_memory(stage: Stage, model: AuroraModel) -> None:
    """AuroraError when a GPU has no room for the stage by our estimate."""
    options, data = stage.options, stage.config["data"]
    if not options.check_memory or options.accelerator == "cpu" or not torch.cuda.is_available():
        return
    local = local_devices(options) if stage.place is None else stage.place.per_node
    needed = memory(model, options, keep_ratio=stage.recipe.keep_ratio, row_tokens=data.get("row_tokens", 0),
                    row_frames=data.get("row_frames", 0), devices=local if stage.place is None else stage.place.world,
                    per_node=local, average=stage.recipe.average is not None)
    require_fit(needed, float(torch.cuda.get_device_properties(0).total_memory), stage.name)


def _module(stage: Stage, data: DataModule, resume: Checkpoint | None) -> AuroraModule:
    total, most = data.total_steps(), stage.recipe.max_steps
    module = AuroraModule(config=stage.config, stage=stage.name, start=stage.start,
                          total_steps=total if most is None else min(total, most))
    module.resume = resume
    return module


def _trained_weights(module: AuroraModule) -> dict[str, Tensor]:
    """All weights of the model or, of what is averaged, the average: on the first rank. Collective."""
    weights = all_weights(module.net, keep=module.global_rank == 0)
    if module.average is not None:
        averages = {name: whole(tensor) for name, tensor in module.average.weights().items()}
        weights = {name: averages.get(name, tensor) for name, tensor in weights.items()}
    return weights


def _save(stage: Stage, weights: dict[str, Tensor], now: Fingerprint) -> None:
    """Writes the model of the stage, its adapters merged, the adapters alone, and that it is done; the config beside
    the model is the one it is used with, not the stage's."""
    stage.folder.path.mkdir(parents=True, exist_ok=True)
    model = skeleton(stage.config, stage.name, stage.recipe)
    model.backbone.start_like({name: tensor.shape for name, tensor in weights.items()})
    model.load_state_dict(weights, assign=True)
    if stage.recipe.adapters:
        save_adapter(model, stage.folder.path / ADAPTER_FOLDER, config=ModelConfig.parse(stage.config),
                     adapters=stage.recipe.adapters, trained=stage.recipe.trained, start=stage.start or "base weights")
        merge_adapters(model)
    save_model(model, ModelConfig.parse(stage.config), stage.folder.model)
    stage.folder.finish(now)


def _rank() -> int:
    return getattr(rank_zero_only, "rank", None) or 0
