"""Options that several commands share: a command takes one of these classes as a parameter, and `aurora.cli` makes
command-line options of its fields, under the first line of its docstring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import typer

Overrides: TypeAlias = Annotated[list[str], typer.Argument(
    metavar="OVERRIDE", default_factory=list, show_default=False,
    help="KEY=VALUE, as Hydra takes it: keep_ratio=0.5, merge=pool, sampling.fps=2. configs/aurora.yaml has the keys.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, for programs.")]
ModelFolder: TypeAlias = Annotated[str | None, typer.Option("--model", metavar="FOLDER", help=(
    "A model folder, as training writes it. Default: runs/*/language_video/model of this folder, if there is just "
    "one."))]


@dataclass(frozen=True)
class Device:
    """Device"""

    device: Annotated[str, typer.Option(metavar="DEVICE", help="Where the model runs, such as cuda.")] = "cpu"
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads on the CPU. Default: one per core.")] = None


@dataclass(frozen=True)
class Adapter:
    """Adapter"""

    adapter: Annotated[str | None, typer.Option(metavar="PATH", help=(
        "RUN/STAGE/adapter of a stage that trained adapters on this model, a folder of peft for its backbone, or a "
        "file with a tuned initial state."))] = None
    any_base: Annotated[bool, typer.Option(
        "--any-base", help="Apply the adapter although it was trained on another model.")] = False
