"""`aurora bench`: speed and memory of one configuration on this machine."""

from __future__ import annotations

import json as to_json
import platform
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aurora.errors import AuroraError

if TYPE_CHECKING:
    import torch

    from aurora.benchmark import Measurement, Work
    from aurora.model import AuroraModel
    from aurora.training.recipe import Recipe

WORKS = ("vision", "prefill", "decode", "train", "data")
BENCH = (
    "Measures your configuration on this machine: encoding frames, reading a prompt, generating tokens, a training "
    "step of `stage`, and reading training data where data.root is given. With --model, a saved model's first three. "
    "Shows medians with quartiles, peak memory, and for training the share of the device's peak arithmetic (MFU) where "
    "that is known (trainer.peak_tflops)."
)
EXAMPLE = "aurora bench experiment=blocks data.root=data/blocks\n  aurora bench --model runs/demo/language_video/model"


class Sizes(NamedTuple):
    """How much one run of a work is."""

    frames: int
    tokens: int
    sequences: int


def options(parser: ArgumentParser) -> None:
    """The arguments, but for those of the machine."""
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, see configs/aurora.yaml")
    parser.add_argument("--model", metavar="FOLDER", help="a model folder, instead of the config's model")
    parser.add_argument("--only", action="append", choices=WORKS, metavar="WORK",
                        help=f"{', '.join(WORKS)}; may be repeated (default: all)")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="encoded together (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="of a prompt (default %(default)s)")
    parser.add_argument("--sequences", type=int, default=1, metavar="N",
                        help="generated side by side (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="per work (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="the result on standard output instead of a table")


def bench(options: Namespace) -> int:
    """Measures one work after the other, and says why another cannot be measured; 1 when none could."""
    import torch

    from aurora.benchmark import measure

    device = torch.device(options.device)
    sizes = Sizes(options.frames, options.tokens, options.sequences)
    for name, number in (*sizes._asdict().items(), ("seconds", options.seconds)):
        if number <= 0:
            raise AuroraError(f"--{name} {number}: must be greater than 0")
    measured: list[Measurement] = []
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        works = _works(options, sizes, Path(folder))
        for name in options.only or WORKS:
            try:
                measured.append(measure(works[name](), device, options.seconds))
            except (AuroraError, torch.OutOfMemoryError) as error:
                skipped[name] = " ".join(str(error).split())
    if options.json:
        rows = [{**one._asdict(), "rate": one.rate} for one in measured]
        result = {**_machine(device), "measurements": rows, "skipped": skipped}
        sys.stdout.write(to_json.dumps(result, indent=2) + "\n")
    else:
        _show(measured, skipped, _machine(device))
    return 0 if measured else 1


def _works(options: Namespace, sizes: Sizes, folder: Path) -> Mapping[str, Callable[[], Work]]:
    """What makes each work ready, by name."""
    from aurora import benchmark
    from aurora.commands.finding import random_model, saved_model

    machine: dict[str, Any] = {"device": options.device, "threads": options.threads}
    if options.model is not None:
        model, config = saved_model(Path(options.model), options.overrides, **machine)
    else:
        model, config, _ = random_model(options.overrides, **machine)
    return {
        "vision": lambda: benchmark.vision(model, config["keep_ratio"], sizes.frames),
        "prefill": lambda: benchmark.prefill(model, sizes.tokens),
        "decode": lambda: benchmark.decode(model, sizes.sequences),
        "train": lambda: _train(config, options.device),
        "data": lambda: _data(config, model, folder),
    }


def _train(config: Mapping[str, Any], device: str) -> Work:
    """The stage's model, as training begins with it."""
    import torch

    from aurora import benchmark
    from aurora.training.precision import in_dtype
    from aurora.training.recipe import read_options
    from aurora.training.start import starting_model

    stage, recipe = _stage(config)
    options = read_options(config["trainer"])
    model = starting_model(in_dtype(config, options), stage, recipe, None)
    benchmark.check_room(model, torch.device(device))
    model = model.to(device)
    return benchmark.train(model, recipe, options, benchmark.training_row(model, recipe, config["data"]))


def _data(config: Mapping[str, Any], model: AuroraModel, folder: Path) -> Work:
    from aurora import benchmark
    from aurora.training.data import build_data

    _, recipe = _stage(config)
    return benchmark.data(build_data(config, recipe, model, folder))


def _stage(config: Mapping[str, Any]) -> tuple[str, Recipe]:
    """The stage that the config selects, of several the last one."""
    from aurora.training.recipe import read_recipes, selected_stages

    if "stages" not in config:
        raise AuroraError("a saved model has no stages; give a config instead of --model")
    recipes = read_recipes(config)
    name = selected_stages(config, recipes)[-1]
    return name, recipes[name]


def _machine(device: torch.device) -> dict[str, Any]:
    import torch

    from aurora import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {"device": name, "threads": torch.get_num_threads(), "aurora": __version__, "torch": torch.__version__}


def _show(measured: Sequence[Measurement], skipped: Mapping[str, str], machine: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(highlight=False), Table()
    console.print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}")
    for number, column in enumerate(("work", "rate", "median ms (quartiles)", "peak memory", "MFU")):
        table.add_column(column, justify="right" if number else "left")
    for one in measured:
        median, low, high = (f"{1000 * seconds:.4g}" for seconds in (one.median, one.low, one.high))
        rate = f"{one.rate:,.0f}" if one.rate >= 100 else f"{one.rate:.3g}"
        table.add_row(one.name, f"{rate} {one.unit}/s", f"{median} ({low} to {high})",
                      "" if one.peak_bytes is None else f"{one.peak_bytes / 1e9:.2f} GB",
                      "" if one.mfu is None else f"{one.mfu:.1%}")
    if measured:
        console.print(table)
    for one in measured:
        console.print(f"{one.name}: {one.what}", markup=False)
    for name, reason in skipped.items():
        console.print(f"{name}: not measured: {reason}", markup=False)
