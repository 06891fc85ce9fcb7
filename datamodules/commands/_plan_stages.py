"""What `aurora plan` knows of the stages of a config: what each reads, and what that takes on given hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aurora.assemble import build_model
from aurora.config import Config
from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.model import AuroraModel
from aurora.recipe import Recipe
from aurora.training.budget import SPARE, Hardware, Reads, cost, memory
from aurora.training.checkpoint.run_folder import StageFolder
from aurora.training.distributed.precision import in_dtype
from aurora.training.distributed.rendezvous import check_processes
from aurora.training.stage import Stage, build_data, held_out_recipe, skeleton

from ..build.catalogue import known_datasets, load_dataset
from ..inspect.reads import ASSUMED, published

GPUS_PER_NODE = 8
COUNTED = {"samples": "visits", "tokens": "tokens"}  # by data.batch_unit


def plan_stages(config: Config, *, published: bool, machine: Hardware | None, image_rate: float, video_rate: float
                ) -> dict[str, dict[str, Any]]:
    """By stage: what its recipe says, below `data` what it reads, below `training` what that takes on a machine.
    Nothing is built but the model's shape. The rates are megapixels that a core decodes per second."""
    with torch.device("meta"):
        model = build_model(config.model)
    read = _from_catalogue if published else _measured
    unit = config.data.get("batch_unit", "samples")
    stages = {}
    for name, recipe in config.selected.items():
        data, mixture, held_out = read(config, name, recipe, model), recipe.mixture, None
        whole, steps = _steps(data, recipe, unit)
        passes = recipe.epochs * steps / max(1, whole)  # epochs, or the part of them that `max_steps` takes
        seconds = sum(one["image_megapixels"] / image_rate + one["video_megapixels"] / video_rate
                      for one in data["datasets"])
        if recipe.validation is not None:
            once = held_out_recipe(recipe)
            held_out = {"times": -(-steps // recipe.validation.every), "datasets": list(once.mixture.datasets),
                        **_validated(read(config, name, once, model)["datasets"], once, unit)}
        stages[name] = {
            "keep_ratio": recipe.keep_ratio, "epochs": recipe.epochs, "max_steps": recipe.max_steps,
            "global_batch": recipe.global_batch, "batch_unit": unit, "table": mixture.table, "paper": mixture.paper,
            "note": mixture.note, "groups": {group: limits.paper for group, limits in mixture.groups.items()},
            "published": published, "data": {**data, "decode_core_hours": seconds * passes / 3600},
            "steps": steps, "passes": passes, "validation": held_out,
        }
        stages[name]["training"] = None if machine is None else _training(config, name, recipe, stages[name], machine)
    return stages


def against_paper(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By table of the paper: samples and visits of each group over all stages that are part of it, and its counts."""
    tables: dict[str, Any] = {}
    for stage in stages.values():
        if stage["table"] is None:
            continue
        table = tables.setdefault(stage["table"], {"paper": stage["paper"], "groups": {}})
        for group, paper in stage["groups"].items():
            reads = [read for read in stage["data"]["datasets"] if read["group"] == group]
            counts = table["groups"].setdefault(group, {"samples": 0, "visits": 0, "paper": None})
            counts["samples"] += sum(read["samples"] for read in reads)
            counts["visits"] += sum(read["visits"] for read in reads) * stage["epochs"]
            counts["paper"] = counts["paper"] if paper is None else paper
    return tables


def _from_catalogue(config: Config, stage: str, recipe: Recipe, model: AuroraModel) -> dict[str, Any]:
    known = set(known_datasets())
    entries = {name: load_dataset(name) for name in recipe.mixture.datasets if name in known}
    data = config.data
    sampling = Sampling(fps=data.get("fps"), frames=data.get("frames"), max_frames=data.get("max_frames"))
    reads = published(recipe.mixture, entries, model.visual_layout(recipe.keep_ratio), sampling)
    return {**reads, "assumed": ASSUMED}


def _measured(config: Config, name: str, recipe: Recipe, model: AuroraModel) -> dict[str, Any]:
    root = config.data.get("root")
    if root is not None and "://" not in str(root) and not any(
            (Path(root) / dataset).is_dir() for dataset in recipe.mixture.datasets):
        raise AuroraError(f"stage {name!r}: none of its {len(recipe.mixture.datasets)} datasets is below data.root "
                          f"{root}; `aurora plan --published` plans from published counts")
    # What is missing is shown, not refused.
    missing = config.data.get("missing", "refuse")
    shown = replace(config, data={**config.data, "missing": "drop" if missing == "refuse" else missing})
    data = build_data(Stage(name, shown, replace(recipe, validation=None), StageFolder(config.run, name), None, model))
    describe = getattr(data, "describe", None)
    if describe is None:
        raise AuroraError(f"data {config.data['name']!r} has no plan of its own to show; webdataset has")
    reads: dict[str, Any] = describe()
    return reads


def _steps(data: Mapping[str, Any], recipe: Recipe, unit: str) -> tuple[int, int]:
    """Optimizer steps of all epochs, and those up to `max_steps`; by published counts about so many."""
    per_epoch = data["steps_per_epoch"]
    if per_epoch is None:
        per_epoch = -(-sum(read[COUNTED[unit]] for read in data["datasets"]) // recipe.global_batch)
    whole = per_epoch * recipe.epochs
    return whole, whole if recipe.max_steps is None else min(whole, recipe.max_steps)


def _validated(reads: Sequence[Mapping[str, Any]], once: Recipe, unit: str) -> dict[str, float]:
    """What one validation reads: of each dataset no more than `max_steps` take."""
    sums = dict.fromkeys(("visits", "tokens", "frames"), 0.0)
    for read in reads:
        whole, steps = _steps({"datasets": [read], "steps_per_epoch": None}, once, unit)
        for key in sums:
            sums[key] += read[key] * steps / max(1, whole)
    return sums


def _training(
    config: Config, name: str, recipe: Recipe, stage: Mapping[str, Any], machine: Hardware
) -> dict[str, Any]:
    """The estimate for a planned stage as plain numbers, all its text counted as learned. AuroraError for processes
    that cannot be divided as the trainer's options say."""
    trainer, held_out = config.trainer, stage["validation"]
    check_processes(trainer, machine.devices)
    model = skeleton(in_dtype(config), name)
    needed = memory(model, trainer, keep_ratio=recipe.keep_ratio, row_tokens=config.data.get("row_tokens", 4096),
                    row_frames=config.data.get("row_frames", 64), devices=machine.devices, per_node=GPUS_PER_NODE,
                    average=recipe.average is not None)
    takes = cost(model, trainer, machine, keep_ratio=recipe.keep_ratio,
                 learned=_reads(model, recipe, total(stage["data"]["datasets"]), stage["passes"]),
                 validated=Reads(0, 0, 0) if held_out is None else _reads(model, recipe, held_out, held_out["times"]))
    return {"memory": {**needed._asdict(), "total": needed.total}, "fits": needed.total <= SPARE * machine.memory,
            **takes._asdict(), "devices": machine.devices, "used": machine.used}


def _reads(model: AuroraModel, recipe: Recipe, once: Mapping[str, float], times: float) -> Reads:
    size = model.vision.prepare.size
    frames, positions = times * once["frames"], times * once["tokens"]
    per_frame = model.visual_layout(recipe.keep_ratio).tokens(size, size)
    return Reads(frames, positions, max(0.0, positions - frames * per_frame))


def total(reads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several datasets take together; bytes are unknown when those of one are."""
    sums: dict[str, Any] = {key: sum(read[key] for read in reads) for key in ("samples", "visits", "tokens", "frames")}
    sizes = [read["bytes"] for read in reads]
    return {**sums, "bytes": None if None in sizes else sum(sizes)}
