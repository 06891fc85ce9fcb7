"""What `aurora plan` shows: what each stage of a config reads, and what that takes on given hardware."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aurora.assemble import build_model
from aurora.config import Config
from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.model import AuroraModel
from aurora.recipe import Recipe
from aurora.terminal import stdout, table
from aurora.training.budget import SPARE, Hardware, Reads, cost, memory, overrides_that_fit, way_to_fit
from aurora.training.checkpoint.run_folder import StageFolder
from aurora.training.distributed.precision import in_dtype
from aurora.training.distributed.rendezvous import check_processes
from aurora.training.stage import Stage, build_data, held_out_recipe, skeleton, stage_prompt

from ..build.catalogue import known_datasets, load_dataset
from ..inspect.reads import ASSUMED, published
from ..shards.index import is_remote

if TYPE_CHECKING:
    from rich.table import Table

GPUS_PER_NODE = 8
COUNTED = {"samples": "visits", "tokens": "tokens"}  # by data.batch_unit
MARK = {"measured": "", "published": "", "group": " ~", "unknown": " ?"}
# Makers round their counts, and some files are always gone.
ENOUGH = 0.98


# ---- numbers ---------------------------------------------------------------------------------------------------


def plan_stages(config: Config, *, published: bool, machine: Hardware | None, image_rate: float, video_rate: float
                ) -> dict[str, dict[str, Any]]:
    """By stage: what its recipe says, below `data` what an epoch reads, below `reads` what the whole stage does, below
    `training` what that takes on a machine. Nothing is built but the model's shape. The rates are megapixels that a
    core decodes per second."""
    with torch.device("meta"):
        model = build_model(config.model)
    read = _from_catalogue if published else _measured
    stages = {}
    for name, recipe in config.selected.items():
        data, mixture = read(config, name, recipe, model), recipe.mixture
        reads, held_out = data.pop("stage"), data.pop("held_out")
        passes = reads["visits"] / max(1, total(data["datasets"])["visits"])  # epochs, or the part that is read of them
        seconds = passes * sum(one["image_megapixels"] / image_rate + one["video_megapixels"] / video_rate
                               for one in data["datasets"])
        stages[name] = {
            "keep_ratio": recipe.keep_ratio, "epochs": recipe.epochs, "max_steps": recipe.max_steps,
            "global_batch": recipe.global_batch, "batch_unit": _unit(config), "table": mixture.table,
            "paper": mixture.paper, "note": mixture.note, "published": published,
            "groups": {group: limits.paper for group, limits in mixture.groups.items()},
            "data": {**data, "decode_core_hours": seconds / 3600}, "steps": reads["steps"], "passes": passes,
            "reads": reads, "validation": None if recipe.validation is None else {
                "times": -(-reads["steps"] // recipe.validation.every), "datasets": list(held_out),
                **{key: sum(one[key] for one in held_out.values()) for key in ("visits", "tokens", "frames")}},
        }
        stages[name]["training"] = None if machine is None else _training(config, name, stages[name], machine)
    return stages


def against_paper(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By table of the paper: samples and visits of each group over all stages that are part of it, and its counts."""
    tables: dict[str, Any] = {}
    for stage in stages.values():
        if stage["table"] is None:
            continue
        groups = tables.setdefault(stage["table"], {"paper": stage["paper"], "groups": {}})["groups"]
        for group, paper in stage["groups"].items():
            reads = total([read for read in stage["data"]["datasets"] if read["group"] == group])
            counts = groups.setdefault(group, {"samples": 0, "visits": 0, "paper": None})
            counts["samples"] += reads["samples"]
            counts["visits"] += reads["visits"] * stage["epochs"]
            counts["paper"] = counts["paper"] if paper is None else paper
    return tables


def total(reads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several datasets take together; bytes are unknown when those of one are."""
    sums: dict[str, Any] = {key: sum(read[key] for read in reads) for key in ("samples", "visits", "tokens", "frames")}
    sizes = [read["bytes"] for read in reads]
    return {**sums, "bytes": None if None in sizes else sum(sizes)}


def _from_catalogue(config: Config, name: str, recipe: Recipe, model: AuroraModel) -> dict[str, Any]:
    known = set(known_datasets())
    sampling = Sampling(config.data.get("fps"), config.data.get("frames"), config.data.get("max_frames"))

    def reads(recipe: Recipe) -> dict[str, Any]:
        entries = {name: load_dataset(name) for name in recipe.mixture.datasets if name in known}
        found = published(recipe.mixture, entries, model.visual_layout(recipe.keep_ratio, stage_prompt(recipe, model)),
                          sampling)
        once = total(found["datasets"])
        whole = recipe.epochs * -(-once[COUNTED[_unit(config)]] // recipe.global_batch)
        steps = whole if recipe.max_steps is None else min(whole, recipe.max_steps)
        part = {key: once[key] * recipe.epochs * steps / max(1, whole) for key in ("visits", "tokens", "frames")}
        return {**found, "stage": {"steps": steps, **part}}

    once = None if recipe.validation is None else held_out_recipe(recipe)
    return {**reads(recipe), "assumed": ASSUMED, "held_out": {} if once is None else {
        name: reads(replace(once, mixture=once.mixture.only([name])))["stage"] for name in once.mixture.datasets}}


def _measured(config: Config, name: str, recipe: Recipe, model: AuroraModel) -> dict[str, Any]:
    root, given = config.data.get("root"), config.data
    if root is not None and not is_remote(str(root)) and not any(
            (Path(root) / dataset).is_dir() for dataset in recipe.mixture.datasets):
        there = ", ".join(sorted(path.name for path in Path(root).glob("[!.]*") if path.is_dir()))
        what = f"which holds {there or 'no folder'}" if Path(root).is_dir() else "which is not a folder"
        raise AuroraError(f"stage {name!r}: none of its {len(recipe.mixture.datasets)} datasets is below data.root "
                          f"{root}, {what}; `aurora plan --published` plans from published counts")
    if given.get("missing") == "refuse":  # what is missing is shown
        given = {**given, "missing": "drop"}
    shown = replace(config, data=given)
    data: Any = build_data(Stage(name, shown, recipe, StageFolder(config.run, name), None, model))
    if not hasattr(data, "describe"):
        raise AuroraError(f"data {config.data['name']!r} has no plan of its own to show; webdataset has")
    return {**data.describe(), "stage": data.reads(),
            "held_out": {name: held_out.reads() for name, held_out in data.held_out.items()}}


def _training(config: Config, name: str, stage: Mapping[str, Any], machine: Hardware) -> dict[str, Any]:
    """The estimate for a planned stage as plain numbers, all its text counted as learned. AuroraError for processes
    that cannot be divided as the trainer's options say."""
    # the machine is one with GPUs, wherever the plan is made
    recipe, trainer, held_out = config.stages[name], replace(config.trainer, accelerator="gpu"), stage["validation"]
    check_processes(trainer, machine.devices)
    model = skeleton(in_dtype(config), name)
    given: dict[str, Any] = {
        "keep_ratio": recipe.keep_ratio, "row_tokens": config.data.get("row_tokens", 4096),
        "row_frames": config.data.get("row_frames", 64), "devices": machine.devices, "per_node": GPUS_PER_NODE,
        "average": recipe.average is not None}
    needed = memory(model, trainer, **given)
    fits = needed.total <= SPARE * machine.memory
    size = model.vision.prepare.size
    per_frame = model.visual_layout(recipe.keep_ratio, stage_prompt(recipe, model)).positions(size, size)

    def reads(once: Mapping[str, float], times: float) -> Reads:
        frames, positions = times * once["frames"], times * once["tokens"]
        return Reads(frames, positions, max(0.0, positions - frames * per_frame))

    takes = cost(model, trainer, machine, keep_ratio=recipe.keep_ratio, learned=reads(stage["reads"], 1),
                 validated=Reads(0, 0, 0) if held_out is None else reads(held_out, held_out["times"]))
    return {"memory": {**needed._asdict(), "total": needed.total}, "fits": fits,
            "fits_with": [] if fits else overrides_that_fit(model, trainer, machine.memory, **given),
            **takes._asdict(), "devices": machine.devices, "used": machine.used}


def _unit(config: Config) -> str:
    return str(config.data.get("batch_unit", "samples"))


# ---- tables ----------------------------------------------------------------------------------------------------


def show(numbers: Mapping[str, Any], image_rate: float, video_rate: float) -> None:
    """A table per stage with what there is to say about it, then the paper's counts."""
    console = stdout()
    for name, stage in numbers["stages"].items():
        console.print(_stage(name, stage))
        for label, line in _lines(stage, image_rate, video_rate):
            console.print(f"  {label:<8} {line}")
        if stage["note"]:
            console.print("  " + stage["note"].strip().replace("\n", "\n  "), style="dim")
        console.print()
    for name, paper in numbers["tables"].items():
        console.print(_paper(name, paper))


def short(number: float | None) -> str:
    """1234567 → 1.23M; unknown is a dash."""
    if number is None:
        return "–"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def _stage(name: str, stage: Mapping[str, Any]) -> "Table":
    counted = "published counts, assumed lengths" if stage["published"] else "measured shards"
    shown = table("dataset", "samples", "read", "visits", "tokens", "frames", "bytes",
                  title=f"{name}: what an epoch reads ({counted})")

    def add(name: str, read: Mapping[str, Any], style: str | None = None) -> None:
        repeats = f"×{read['visits'] / read['samples']:.3g}" if read["samples"] else "–"
        shown.add_row(name, f"{read['samples']:,}", repeats, f"{read['visits']:,}",
                      *(short(read[key]) for key in ("tokens", "frames", "bytes")), style=style)

    reads = stage["data"]["datasets"]
    for group in dict.fromkeys(read["group"] for read in reads):
        members = [read for read in reads if read["group"] == group]
        if group is not None:
            add(group, total(members), "bold")
        for read in members:
            add(("  " if group else "") + read["dataset"] + MARK[read["counted"]], read)
    shown.add_section()
    add("all", total(reads), "bold")
    return shown


def _lines(stage: Mapping[str, Any], image_rate: float, video_rate: float) -> Iterator[tuple[str, str]]:
    """What there is to say about a stage: a label and a sentence."""
    data, reads, about = stage["data"], stage["reads"], "about " if stage["published"] else ""
    size = total(data["datasets"])["bytes"]
    volume = "" if size is None else f"{short(size * stage['passes'])} bytes; "
    yield "steps", (f"{about}{stage['steps']:,}, each of about {stage['global_batch']:,} {stage['batch_unit']}; "
                    f"{stage['passes']:.3g} epoch(s), keep ratio {stage['keep_ratio']:g}")
    yield "reads", (f"{about}{reads['visits']:,.0f} samples in all, {short(reads['tokens'])} tokens, "
                    f"{short(reads['frames'])} frames")
    yield "decodes", (f"{volume}at most {data['decode_core_hours']:,.1f} core hours, at {image_rate:g} "
                      f"megapixels of images and {video_rate:g} of video per core and second")
    if data["fill"] is not None:
        yield "rows", (f"{data['fill']['tokens']:.1%} of their tokens and {data['fill']['frames']:.1%} of their frames "
                       "are taken, as far as windows were packed")
    held_out, training = stage["validation"], stage["training"]
    if held_out is not None:
        yield "checks", (f"{held_out['times']:,} times on {', '.join(held_out['datasets'])}: each time about "
                         f"{short(held_out['tokens'])} tokens and {short(held_out['frames'])} frames")
    if stage["published"]:
        assumed = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in data["assumed"].items())
        yield "assumed", f"per sample: {assumed}; ~ only the group was counted, ? nobody counted"
    if data["missing"]:
        yield "missing", ", ".join(data["missing"])
    for what, reason in (("dropped", "longer than a row, left out"), ("shrunk", "videos read with fewer frames")):
        named = [f"{read['dataset']} {read[what]:,}" for read in data["datasets"] if read[what]]
        if named:
            yield what, f"{reason}: {', '.join(named)}"
    fewer = [f"{read['dataset']} {read['held']:,} of {read['published']:,}" for read in data["datasets"]
             if read["counted"] == "measured" and read["held"] < ENOUGH * (read["published"] or 0)]
    if fewer:
        yield "fewer", f"samples than published: {', '.join(fewer)}"
    if training is not None:
        parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in training["memory"].items() if name != "total")
        price = "" if training["price"] is None else f", at a cost of {training['price']:,.0f}"
        yield "trains", (f"{training['flops'] / 1e18:,.1f} EFLOP: {training['hours']:,.1f} hours on "
                         f"{training['devices']} GPUs at {training['used']:.0%} of their peak{price}")
        yield "memory", f"about {training['memory']['total'] / 2**30:.1f} GiB of each GPU ({parts})"
        if not training["fits"]:
            yield "", f"DOES NOT FIT; {way_to_fit(training['fits_with'])}"


def _paper(name: str, paper: Mapping[str, Any]) -> "Table":
    shown = table("group", "samples", "visits", "paper",
                  title=f"Table {name} of the paper, beside what the planned stages read in all epochs")

    def add(name: str, *counts: int | None, style: str | None = None) -> None:
        shown.add_row(name, *("" if count is None else f"{count:,}" for count in counts), style=style)

    groups = paper["groups"]
    for group, counts in groups.items():
        add(group, *counts.values())
    shown.add_section()
    add("all", *(sum(counts[key] for counts in groups.values()) for key in ("samples", "visits")), paper["paper"],
        style="bold")
    return shown
