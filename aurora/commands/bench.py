import logging
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora.commands._options import Device, Json, Overrides, positive
from aurora.errors import AuroraError, suggest
from aurora.version import VERSION

if TYPE_CHECKING:
    from aurora.benchmark import Measurement

WORKS = ("vision", "prefill", "decode", "train", "data")


@dataclass(frozen=True)
class Sizes:
    """Sizes"""

    frames: Annotated[int, typer.Option(metavar="N", min=1, help="Frames that are encoded together.")] = 8
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a prompt.")] = 512
    sequences: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences that are generated together.")] = 1
    seconds: Annotated[float, typer.Option(metavar="S", parser=positive, help="How long each measurement runs.")] = 3.0


def bench(
    *,
    overrides: Overrides,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A model folder, in place of a config.")] = None,
    only: Annotated[list[str], typer.Option(
        metavar="NAME", default_factory=list, show_default=False,
        help=f"Measure only this: {', '.join(WORKS)}. May be repeated.")],
    sizes: Sizes,
    device: Device,
    json_output: Json = False,
) -> int:
    """Measure the speed of a configuration on this machine.

    Measures encoding frames, reading a prompt and generating tokens; of a config also a training step of `stage` and,
    where data.root is given, reading training data. Shows medians with quartiles, peak memory, and for training the
    share of the device's peak arithmetic (MFU) where that is known (trainer.peak_tflops).

    \b
    example:
      aurora bench experiment=blocks data.root=data/blocks
      aurora bench --model runs/demo/language_video/model --sequences 8
    """
    from aurora.terminal import Waiting, write_json

    with Waiting("loading"):
        import torch

    for name in set(only).difference(WORKS):
        raise AuroraError(f"--only {name!r} is not a measurement.{suggest(name, WORKS)}")
    measured: list[Measurement] = []
    skipped: dict[str, str] = {}
    logging.disable(logging.WARNING)  # hints of Lightning's, and where a stage would start from
    with tempfile.TemporaryDirectory() as folder:
        measurements = _measurements(model, overrides, sizes, device, Path(folder))
        for name in only or WORKS:
            try:
                measured.append(measurements[name]())
            except (AuroraError, torch.OutOfMemoryError) as error:
                skipped[name] = " ".join(str(error).split())
    logging.disable(logging.NOTSET)
    place = torch.device(device.device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{platform.machine()} CPU"
    machine = {"device": name, "threads": torch.get_num_threads(), "aurora": VERSION, "torch": torch.__version__}
    if json_output:
        rows = [{**one._asdict(), "rate": one.rate} for one in measured]
        write_json({**machine, "measurements": rows, "skipped": skipped})
    else:
        _show(measured, skipped, machine)
    return 0 if measured else 1


def _measurements(given: Path | None, overrides: Sequence[str], sizes: Sizes, device: Device, folder: Path
                  ) -> "Mapping[str, Callable[[], Measurement]]":
    """What measures each work, by name. A saved model has neither stages nor data."""
    import torch

    from aurora import benchmark
    from aurora.config import Config, load_config
    from aurora.inference.models import random_model, saved_model

    machine: dict[str, Any] = {"device": device.device, "threads": device.threads}
    model, described = saved_model(given, overrides, **machine) if given else random_model(overrides, **machine)[:2]
    place = torch.device(device.device)
    measure = partial(benchmark.measure, device=place, seconds=sizes.seconds)

    def stage() -> tuple[Config, str]:
        if given:
            raise AuroraError("a saved model has no stages and no data; give a config in place of --model")
        config = replace(load_config(*overrides), run=str(folder))
        return config, list(config.selected)[-1]

    return {
        "vision": lambda: measure(benchmark.vision(model, described.keep_ratio, sizes.frames)),
        "prefill": lambda: measure(benchmark.prefill(model, sizes.tokens)),
        "decode": lambda: measure(benchmark.decode(model, sizes.sequences)),
        "train": lambda: benchmark.measure_training(*stage(), device=place, seconds=sizes.seconds),
        "data": lambda: measure(benchmark.data(*stage())),
    }


def _show(measured: "Sequence[Measurement]", skipped: Mapping[str, str], machine: Mapping[str, Any]) -> None:
    from aurora.terminal import stdout, table

    console = stdout()
    console.print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}")
    shown = table("work", "rate", "median ms (quartiles)", "peak memory", "MFU")
    for one in measured:
        median, low, high = (f"{1000 * seconds:.4g}" for seconds in (one.median, one.low, one.high))
        rate = f"{one.rate:,.0f}" if one.rate >= 100 else f"{one.rate:.3g}"
        shown.add_row(one.name, f"{rate} {one.unit}/s", f"{median} ({low} to {high})",
                      "" if one.peak_bytes is None else f"{one.peak_bytes / 1e9:.2f} GB",
                      "" if one.mfu is None else f"{one.mfu:.1%}")
    if measured:
        console.print(shown)
    for one in measured:
        console.print(f"{one.name}: {one.what}")
    for name, reason in skipped.items():
        console.print(f"{name}: not measured: {reason}")
