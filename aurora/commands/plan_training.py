"""What `aurora plan` says of training: memory of a device, hours and money on hardware that the user names."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.estimate import SPARE, Hardware, Reads, cost, memory
from aurora.training.flops import PEAKS, named_peak
from aurora.training.precision import in_dtype
from aurora.recipe import Recipe, read_options
from aurora.training.sharding import check_processes
from aurora.training.start import skeleton

GPUS_PER_NODE = 8


def hardware(options: Namespace) -> Hardware | None:
    """What the options describe; None when no GPU was named. AuroraError for an unknown one without its peak."""
    given = {"--gpus": options.gpus, "--gpu-gib": options.gpu_gib, "--used": options.used,
             "--peak-tflops": options.peak_tflops, "--price": options.price}
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise AuroraError(f"{name} {value} must be above 0")
    if options.used > 1:
        raise AuroraError(f"--used {options.used} is a share of the peak; it must be at most 1")
    if options.gpu is None:
        if options.price is not None or options.peak_tflops is not None:
            raise AuroraError("--price and --peak-tflops need --gpu NAME, which may be any with --peak-tflops")
        return None
    peak = named_peak(options.gpu) if options.peak_tflops is None else options.peak_tflops * 1e12
    if peak is None:
        raise AuroraError(f"--gpu {options.gpu}: its peak is not known; give --peak-tflops, or one of "
                          f"{', '.join(PEAKS)}")
    return Hardware(options.gpus, options.gpu_gib * 2**30, peak, options.used, options.price)


def training(
    config: Mapping[str, Any], name: str, recipe: Recipe, stage: Mapping[str, Any], machine: Hardware
) -> dict[str, Any]:
    """The estimate for a planned stage as plain numbers, all its text counted as learned. AuroraError for processes
    that cannot be divided as the trainer's options say."""
    trainer, held_out = read_options(config["trainer"]), stage["validation"]
    check_processes(trainer, machine.devices)
    model = skeleton(in_dtype(config, trainer), name, recipe)
    needed = memory(model, trainer, keep_ratio=recipe.keep_ratio, row_tokens=config["data"].get("row_tokens", 4096),
                    row_frames=config["data"].get("row_frames", 64), devices=machine.devices, per_node=GPUS_PER_NODE,
                    average=recipe.average is not None)
    takes = cost(model, trainer, machine, keep_ratio=recipe.keep_ratio,
                 learned=_reads(model, recipe, total(stage["data"]["datasets"]), stage["passes"]),
                 validated=Reads(0, 0, 0) if held_out is None else _reads(model, recipe, held_out, held_out["times"]))
    return {"memory": {**needed._asdict(), "total": needed.total}, "fits": needed.total <= SPARE * machine.memory,
            **takes._asdict(), "devices": machine.devices, "used": machine.used}


def _reads(model: AuroraModel, recipe: Recipe, once: Mapping[str, float], times: float) -> Reads:
    size = model.vision.prepare.size
    frames, positions = times * once["frames"], times * once["tokens"]
    return Reads(frames, positions, max(0.0, positions - frames * model.layout(recipe.keep_ratio).tokens(size, size)))


def total(reads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several datasets take together; bytes are unknown when those of one are."""
    sums: dict[str, Any] = {key: sum(read[key] for read in reads) for key in ("samples", "visits", "tokens", "frames")}
    sizes = [read["bytes"] for read in reads]
    return {**sums, "bytes": None if None in sizes else sum(sizes)}


def training_lines(told: Mapping[str, Any] | None) -> list[str]:
    """The same for people; nothing where no hardware was named."""
    if told is None:
        return []
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in told["memory"].items() if name != "total")
    price = "" if told["price"] is None else f", {told['price']:,.0f} in money"
    return [
        f"trains   {told['flops'] / 1e18:,.1f} EFLOP: {told['hours']:,.1f} hours on {told['devices']} GPUs at "
        f"{told['used']:.0%} of their peak{price}",
        f"memory   about {told['memory']['total'] / 2**30:.1f} GiB of each GPU ({parts})"
        + ("" if told["fits"] else ": DOES NOT FIT"),
    ]
