"""Options that several commands share: a command takes one of these classes as a parameter, and `aurora.cli` makes
command-line options of its fields, under the first line of its docstring."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from aurora.errors import AuroraError, suggest

Overrides: TypeAlias = Annotated[list[str], typer.Argument(
    metavar="OVERRIDE", default_factory=list, show_default=False,
    help="KEY=VALUE, as Hydra takes it: keep_ratio=0.5, merge=pool, sampling.fps=2. configs/aurora.yaml has the keys.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, for programs.")]
ModelFolder: TypeAlias = Annotated[str | None, typer.Option("--model", metavar="FOLDER", help=(
    "A model folder, as training writes it. Default: runs/*/language_video/model of this folder, if there is just "
    "one."))]
Score: TypeAlias = Annotated[Literal["text", "likelihood", "likelihood_per_token"], typer.Option(help=(
    "How an option is chosen: by what the model writes, by the log-probability of each option's text as the answer, or "
    "by its mean over the tokens, which does not favor short options."))]


def positive(text: str | float) -> float:
    """A number above 0, for `typer.Option(parser=...)`."""
    if not 0 < float(text) < math.inf:
        raise AuroraError("must be above 0")
    return float(text)


CheckpointSeconds: TypeAlias = Annotated[float | None, typer.Option(
    metavar="S", parser=positive, help="Keep a state every S seconds too, for questions about a moment.")]


def require_writable_folder(folder: str | Path) -> None:
    """AuroraError for what cannot be a folder to write into, before any work is done for it."""
    if not str(folder):
        raise AuroraError("the name of the folder to write into is empty; . is the one at hand")
    refuse_override(str(folder))
    above = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not above.is_dir():
        raise AuroraError(f"{above} is a file; give the name of a folder to write into")


def refuse_override(path: str) -> None:
    """AuroraError for KEY=VALUE where a path is asked for."""
    if "/" not in path and _OVERRIDE.match(path) and not os.path.exists(path):
        raise AuroraError(f"{path!r} looks like an override, where a path is expected; {os.path.abspath(path)} is one")


_OVERRIDE = re.compile(r"(?:\+{0,2}(?P<set>[a-z_]+)(?:[.@/][\w.@/]*)?=|~(?P<deleted>[a-z_]+))", re.IGNORECASE)
_FILE = re.compile(r"\S+\.[a-z]\w{1,3}|https?://\S+", re.IGNORECASE)


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


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that are not overrides, and the overrides: KEY=VALUE, or ~KEY, with a key at the top of the config.

    AuroraError for another key: `keep_raito=0.5` is not meant as a question.
    """
    from aurora.config import CONFIG_FOLDER, CONFIG_KEYS

    others: list[str] = []
    overrides: list[str] = []
    known = {*CONFIG_KEYS, *(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir())}
    for word in words:
        found = None if os.path.exists(word) else _OVERRIDE.match(word)
        key = found and (found["set"] or found["deleted"])
        if key in known:
            overrides.append(word)
        elif key and not re.search(r"\s|\?$", word):
            raise AuroraError(f"{word!r}: the config has no {key!r}.{suggest(key, sorted(known))}")
        else:
            others.append(word)
    return others, overrides


def split_words(words: Sequence[str], *, files: bool = True) -> tuple[list[str], list[str], list[str]]:
    """Videos and images, questions, and overrides. A file is what comes first, if `files` are asked for, what exists,
    what is called like one, and an address. AuroraError when there is none, and for an empty question."""
    others, overrides = split_overrides(words)
    found = [word for number, word in enumerate(others)
             if (number == 0 and files) or os.path.exists(word) or _FILE.fullmatch(word)]
    questions = [word for word in others if word not in found]
    if files and not found:
        raise AuroraError("no video or image file was given")
    if not all(question.strip() for question in questions):
        raise AuroraError("a question is empty")
    return found, questions, overrides
