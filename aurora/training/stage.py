"""One stage of a run: its model, its data and what it starts from, checked before anything starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger

from aurora.assemble import build_model, load_base_weights
from aurora.config import Config, read_config
from aurora.errors import AuroraError, suggest
from aurora.instantiate import check_entries
from aurora.interfaces import DataModule, Prompt
from aurora.model import AuroraModel
from aurora.recipe import Recipe, TrainerOptions
from aurora.registry import DATA, PROMPT, READER
from aurora.training.budget import merge_schedule
from aurora.training.callbacks import check_callbacks
from aurora.training.checkpoint.layout import CHECKPOINTS, read_checkpoint
from aurora.training.checkpoint.run_folder import Fingerprint, StageFolder, fingerprint
from aurora.training.checkpoint.state import AVERAGE, WEIGHTS, trained_parameters
from aurora.training.distributed.precision import in_dtype
from aurora.training.distributed.rendezvous import Rank, check_processes, fitted, refuse_restart
from aurora.training.module import AuroraModule
from aurora.training.optim import set_trainable
from aurora.weights.adapters import attach_adapters, merge_adapters
from aurora.weights.io import weight_files
from aurora.weights.model_folder import load_weights

QUARANTINE_FILE = "bad_samples.jsonl"
VALIDATION = "validation"  # the folder in that of the stage; below it one for every dataset
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage that is about to be trained."""

    name: str
    config: Config
    recipe: Recipe
    folder: StageFolder
    initial: str | None  # the model folder that it starts from; None: base weights
    skeleton: AuroraModel  # on the meta device, as it is trained
    rank: Rank | None = None  # this process among those that a launcher has started

    @property
    def options(self) -> TrainerOptions:
        """Where and how it runs."""
        return self.config.trainer

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides what it learns; the model that it starts from must be there."""
        return fingerprint(self.config, self.name, self.initial)


# ---- planning --------------------------------------------------------------------------------------------------


def plan_stages(config: Config, rank: Rank | None = None, *, worlds: Sequence[int] = ()) -> list[Stage]:
    """The selected stages in order. AuroraError for whatever makes no sense, before anything starts.

    `worlds` are the numbers of processes that a launcher may start.
    """
    config = in_dtype(replace(config, trainer=fitted(config.trainer, rank)))
    refuse_restart(config, launched=rank is not None or bool(worlds))
    for processes in worlds:
        check_processes(config.trainer, processes)
    check_entries("logger", config.logger, Logger)
    selected = config.selected
    check_callbacks(config.trainer.callbacks, validated=any(recipe.validation for recipe in selected.values()))
    config.require_datasets(list(selected))
    stages = []
    for number, (name, recipe) in enumerate(selected.items()):
        given = config.init_from if number == 0 else None
        initial = given or _model_before(config, name, recipe.after)
        _check_initial(config, given, initial)
        stages.append(_stage(config, name, initial, rank))
    return stages


def _stage(config: Config, name: str, initial: str | None, rank: Rank | None = None) -> Stage:
    """AuroraError when the blocks of the encoder cannot merge as much as the stage asks for."""
    recipe = config.stages[name]
    stage = Stage(name, config, recipe, StageFolder(config.run, name), initial, skeleton(config, name), rank)
    try:
        merge_schedule(stage.skeleton, recipe.keep_ratio)
    except AuroraError as error:
        raise AuroraError(f"stages.{name}.keep_ratio {recipe.keep_ratio}: {error}") from error
    return stage


def _model_before(config: Config, name: str, after: str | None) -> str | None:
    if after is None:
        return None
    folder = StageFolder(config.run, after)
    if after not in config.selected and folder.finished() is None:
        raise AuroraError(f"stage {name!r} starts from the model of {after!r}, and {folder.model} does not exist; "
                          f"`aurora train run={config.run} stage={after}` trains it, or give init_from=MODEL_FOLDER")
    return str(folder.model)


def _check_initial(config: Config, given: str | None, initial: str | None) -> None:
    """AuroraError when the weights that a stage starts from do not exist."""
    if given is not None:
        read_config(given)
    if initial is None:
        for path in config.require_base_weights().values():
            weight_files(Path(path))


# ---- model -----------------------------------------------------------------------------------------------------


def skeleton(config: Config, stage: str) -> AuroraModel:
    """The model of a stage as it is trained, on the meta device: without memory."""
    recipe = config.stages[stage]
    with torch.device("meta"):
        model = build_model(config.model)
        attach_adapters(f"stages.{stage}.adapters", model, recipe.adapters)
    set_trainable(model, recipe)
    return model


def initial_model(config: Config, stage: str, initial: str | None) -> AuroraModel:
    """The model that a stage starts from, with its adapters: the one in the folder `initial`, or base weights; the rest
    is random, the same for the same seed."""
    recipe = config.stages[stage]
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if initial is None:
        load_base_weights(model, config)
    else:
        load_weights(model, initial, config.model)
    attach_adapters(f"stages.{stage}.adapters", model, recipe.adapters)
    return model


def build_module(stage: Stage) -> AuroraModule:
    """The LightningModule of a stage; it builds its model when the trainer asks for it."""
    config = stage.config
    return AuroraModule(
        partial(initial_model, config, stage.name, stage.initial), recipe=stage.recipe, options=stage.options,
        stage=stage.name, seed=config.seed, row_tokens=config.data.get("row_tokens"),
        hyper_parameters={"config": config.tree, "stage": stage.name, "initial": stage.initial,
                          "fingerprint": stage.fingerprint})


def from_checkpoint(folder: Path) -> tuple[AuroraModel, Config]:
    """The model of a training checkpoint RUN/STAGE/checkpoints/step-N and its config: with the average of the weights
    where one was kept, adapters merged.

    AuroraError for a broken checkpoint, and when the model that the stage started from does not exist any more.
    """
    checkpoint = read_checkpoint(folder)
    given = checkpoint.state["hyper_parameters"]
    config = Config.parse(given["config"])
    model = initial_model(config, given["stage"], given["initial"])
    set_trainable(model, config.stages[given["stage"]])
    trained = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
    names = checkpoint.shapes()
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in names) else WEIGHTS
    if {f"{prefix}{name}" for name in trained} - names.keys():
        raise AuroraError(f"{folder} holds other parameters than its stage trains")
    checkpoint.load({f"{prefix}{name}": tensor for name, tensor in trained.items()}, None)
    merge_adapters(model)
    return model, config


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is RUN/STAGE/checkpoints/step-N."""
    return folder.parent.name == CHECKPOINTS and folder.name.startswith("step-")


# ---- data ------------------------------------------------------------------------------------------------------


def build_data(stage: Stage) -> DataModule:
    """The rows of a stage, and those of what is held out; bad samples are listed below the stage's folder."""
    data = _data(stage, stage.recipe, stage.folder.path)
    if stage.recipe.validation is not None:
        data.held_out = _held_out(stage, stage.recipe)
    return data


def total_steps(stage: Stage, data: DataModule) -> int:
    """Optimizer steps of the stage: those of its epochs, or fewer by `max_steps`."""
    steps, most = data.total_steps(), stage.recipe.max_steps
    return steps if most is None else min(steps, most)


def stage_prompt(recipe: Recipe, model: AuroraModel) -> Prompt:
    """The prompt that a stage is trained with."""
    return model.prompt if recipe.prompt is None else PROMPT.build(recipe.prompt)


def _data(stage: Stage, recipe: Recipe, folder: Path) -> DataModule:
    """What the recipe and other parts know is handed over unless `config.data` says it."""
    model = stage.skeleton
    prompt = stage_prompt(recipe, model)
    options = {key: value for key, value in stage.config.data.items() if value is not None}
    facts = {
        "layout": model.visual_layout(recipe.keep_ratio, prompt),
        "tokenizer": model.tokenizer,
        "prompt": prompt,
        "reader": READER.build(stage.config.model.reader),
        "mixture": recipe.mixture,
        "epochs": recipe.epochs,
        "max_steps": recipe.max_steps,
        "global_batch": recipe.global_batch,
        "seed": stage.config.seed,
        "quarantine": str(folder / QUARANTINE_FILE),
    }
    return DATA.build(options, **{key: fact for key, fact in facts.items() if key not in options})


def _held_out(stage: Stage, recipe: Recipe) -> dict[str, DataModule]:
    """What a stage is validated on, by dataset. AuroraError names the dataset that cannot be read."""
    kind, once, config = stage.config.data["name"], held_out_recipe(recipe), stage.config
    names = list(once.mixture.datasets)
    if "mixture" not in DATA.options(kind):
        raise AuroraError(f"validation: data {kind!r} takes no mixture, so it cannot read what is held out; "
                          "stages.STAGE.validation.mixture=null trains without")
    if config.data.get("missing") == "drop":
        names = sorted({*names} - {*config.missing(names)}, key=names.index)
        if not names:
            raise AuroraError(f"validation: none of {', '.join(once.mixture.datasets)} is below data.root "
                              f"{config.data['root']}; stages.STAGE.validation.mixture=null trains without one")
    found = {}
    for name in names:
        recipe = replace(once, mixture=once.mixture.only([name]))
        try:
            found[name] = _data(stage, recipe, stage.folder.path / VALIDATION / name)
            found[name].total_steps()
        except AuroraError as error:
            raise AuroraError(f"validation on {name}: {error}") from error
    return found


def held_out_recipe(recipe: Recipe) -> Recipe:
    """What one validation reads, as if it were trained on."""
    assert recipe.validation is not None
    return replace(recipe, mixture=recipe.validation.mixture, epochs=1, max_steps=recipe.validation.max_steps)


# ---- for Lightning users ---------------------------------------------------------------------------------------


def training_module(config: Config, stage: str, *, initial: str | None = None) -> AuroraModule:
    """The LightningModule of a stage, for a Trainer of your own.

    It starts from the model folder `initial` or `config.init_from`, else from the model of the stage before where the
    run has one, else from base weights.
    """
    return build_module(_user_stage(config, stage, initial))


def data_module(config: Config, stage: str) -> DataModule:
    """The LightningDataModule of a stage, for a Trainer of your own: its batches are `Step`s."""
    config.require_datasets([stage] if stage in config.stages else [])
    return build_data(_user_stage(config, stage, None))


def _user_stage(config: Config, name: str, initial: str | None) -> Stage:
    if name not in config.stages:
        raise AuroraError(f"no stage named {name!r}.{suggest(name, config.stages)}")
    initial, after = initial or config.init_from, config.stages[name].after
    if initial is None and after is not None:
        before = StageFolder(config.run, after)
        if before.finished() is not None:
            initial = str(before.model)
        else:
            _log.warning("stage %r starts from base weights: run %s has no model of %r yet", name, config.run, after)
    config = in_dtype(config)
    _check_initial(config, initial, initial)
    return _stage(config, name, initial)
