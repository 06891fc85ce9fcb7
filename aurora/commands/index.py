"""`aurora index`: the films of a store, made of all videos below a folder, listed, shown and removed."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from aurora.commands._options import (
    Adapter,
    CheckpointSeconds,
    Json,
    ModelFolder,
    require_writable_folder,
    split_overrides,
)
from aurora.commands._workers import Devices, Jobs, Threads, device_of_each, make_executor, worker_model
from aurora.commands.ask import Sampled
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.inference.index import Outcome

Store: TypeAlias = Annotated[Path, typer.Option("--store", metavar="FOLDER", help=(
    "The store: a folder of films, which `aurora ask --store` and `aurora serve` read too."))]
Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="A film, as `aurora index list` names it.")]

index = typer.Typer(add_completion=False, help=(
    "Watch a folder of videos once, and keep the films.\n\n"
    "A film is what a model has seen of a video, a file of constant size; the films of a store are asked without the "
    "videos.\n\n\b\nexample:\n  aurora index build videos --store films\n"
    '  aurora ask --store films "Is there a dog?"'))


@index.command()
def build(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Every video below this folder is watched.")],
    store: Store,
    overrides: Annotated[list[str], typer.Argument(
        metavar="OVERRIDE", default_factory=list, show_default=False,
        help="KEY=VALUE of the model's config, such as merge=pool, or executor.KEY=VALUE, see `aurora list`.")],
    model: ModelFolder = None,
    frames: Sampled, adapter: Adapter,
    checkpoint_seconds: CheckpointSeconds = None,
    jobs: Jobs = None, devices: Devices = "cpu", threads: Threads = None,
    executor: Annotated[str, typer.Option(metavar="NAME", help="process, serial or ray.")] = "process",
    part: Annotated[str | None, typer.Option(metavar="K/N", help=(
        "Watch only every Nth video, beginning with number K from 0, as one of N jobs of a cluster."))] = None,
    json_output: Json = False,
) -> int:
    """Watch every video below a folder into a store.

    A film is named after its video, without the suffix. Videos whose film stands already, of the same file, model and
    settings, are skipped; after an interruption the same command goes on. A broken video does not stop the others: it
    is listed, and the exit status is 1.

    \b
    example:
      aurora index build videos --store films --jobs 2
      aurora index build videos --store films --model runs/mine/language_video/model \\
        --devices cuda:0,cuda:1 --fps 1 --checkpoint-seconds 60
    """
    from aurora.inference.index import build_index, find_videos
    from aurora.inference.models import model_folder
    from aurora.inference.store import FilmStore

    require_writable_folder(store)
    asked, options = _split(overrides)
    places = device_of_each(devices, jobs, executor)
    runner = make_executor(executor, options, len(places))
    videos = find_videos(folder, without=store)
    videos = _part(videos, part)
    with TemporaryDirectory(prefix="aurora-index-") as scratch:
        worker = worker_model(model_folder(model), [*asked, *frames.overrides()], adapter, places, threads,
                              claims=Path(scratch) / "device")
        coming = build_index(videos, FilmStore(store), worker, runner, checkpoint_seconds=checkpoint_seconds)
        done = sorted(_watched(coming, len(videos)))
    _report(done, store, json_output)
    return 1 if any(outcome.failed for outcome in done) else 0


@index.command("list")
def show_all(*, store: Store, json_output: Json = False) -> int:
    """List the films of a store.

    Reads the heads of the files only. A film that cannot be read is listed as such, and the exit status is 1.

    \b
    example:
      aurora index list --store films
    """
    from aurora.inference.store import FilmStore
    from aurora.terminal import clock, stdout, table, write_json

    if not store.exists():
        raise AuroraError(f"{store} does not exist; `aurora index build FOLDER --store {store}` makes it")
    films = FilmStore(store)
    rows = {name: _row(films, name) for name in films.names()}
    if json_output:
        write_json(rows)
    else:
        shown = table("name", "frames", "length", "every", "state", "file", "watched from",
                      numbers=("frames", "length", "every", "state", "file"))
        for name, row in rows.items():
            if "damaged" in row:
                shown.add_row(name, "", "", "", "", _size(row["file_bytes"]), row["damaged"])
                continue
            every = row["checkpoint_seconds"]
            shown.add_row(name, f"{row['frames']:,}", clock(row["seconds"]), "" if every is None else f"{every:g} s",
                          _size(row["state_bytes"]), _size(row["file_bytes"]), row["watched"])
        stdout().print(shown)
    return 1 if any("damaged" in row for row in rows.values()) else 0


@index.command()
def show(*, name: Name, store: Store, json_output: Json = False) -> None:
    """Show all that a film says of itself.

    What it was watched from and how, how much of it, and the model that it belongs to.

    \b
    example:
      aurora index show holiday/beach --store films
    """
    from aurora.inference.store import FilmStore
    from aurora.terminal import clock, stdout, write_json

    films = FilmStore(store)
    facts = films.info(name)
    if json_output:
        write_json(facts)
        return
    now, console = facts["now"], stdout()
    lines = {"name": name, "file": f"{films.path(name)} ({_size(films.path(name).stat().st_size)})", "id": facts["id"],
             "seen": f"{now['frames']:,} frames, {now['skipped']:,} of them unchanged, {clock(now['seconds'])}",
             "moments kept": len(facts["history"]), "conversation": f"{len(facts['turns'])} turns"}
    for number, medium in enumerate(facts["media"], 1):
        lines[f"video {number}"] = f"{medium['name']} from {clock(medium['start'])}, {_pairs(medium['sampling'])}"
        lines[f"sha256 of {number}"] = medium["sha256"] or "not a file"
    lines |= {**facts["settings"], **facts["identity"]}
    for key, value in lines.items():
        console.print(f"{key:<14} {_pairs(value) if isinstance(value, dict) else value}")


@index.command()
def remove(*, names: Annotated[list[str], typer.Argument(metavar="NAME", help="A film, or several.")],
           store: Store) -> None:
    """Delete films of a store.

    The videos stay where they are. Nothing is deleted unless all of the names are those of films.

    \b
    example:
      aurora index remove holiday/beach --store films
    """
    from aurora.inference.store import FilmStore

    films = FilmStore(store)
    for name in names:
        films.require(name)
    for name in dict.fromkeys(names):
        films.remove(name)
        sys.stdout.write(f"removed {name}\n")


def _split(words: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides of the model, and the options behind `executor.`."""
    from aurora.config import parse_override

    words = list(words)
    ours = [word for word in words if word.startswith("executor.")]
    others, overrides = split_overrides([word for word in words if word not in ours])
    if others:
        raise AuroraError(f"{others[0]!r} is not an override such as keep_ratio=0.5; one folder of videos is given")
    parsed = map(parse_override, ours)
    return overrides, {one.key_or_group.partition(".")[2]: one.value() for one in parsed}


def _part(videos: list[Any], part: str | None) -> list[Any]:
    if part is None:
        return videos
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or not int(found[1]) < int(found[2]):
        raise AuroraError(f"--part {part!r} is not K/N with K from 0 to N - 1, such as 0/8")
    return videos[int(found[1])::int(found[2])]


def _watched(outcomes: "Iterable[Outcome]", total: int) -> "list[Outcome]":
    """All outcomes, with a bar while they come."""
    from rich.progress import BarColumn, TimeElapsedColumn, TimeRemainingColumn

    from aurora.terminal import clock, progress

    done: list[Outcome] = []
    with progress("{task.description}", BarColumn(), "{task.fields[text]}", TimeElapsedColumn(), TimeRemainingColumn()
                  ) as bars:
        bar = bars.add_task("watching", total=total, text="")
        for outcome in outcomes:
            done.append(outcome)
            counts = Counter(one.status for one in done)
            watched = sum(one.seconds for one in done if one.status == "watched")
            text = ", ".join(f"{count} {status}" for status, count in counts.items())
            bars.update(bar, advance=1, text=f"{len(done)} of {total}: {text}; {clock(watched)} of video")
    return done


def _report(done: "list[Outcome]", store: Path, json_output: bool) -> None:
    from aurora.terminal import clock, write_json

    counts = Counter(outcome.status for outcome in done)
    if json_output:
        write_json({"counts": counts, "videos": [outcome._asdict() for outcome in done]})
        return
    watched = [outcome for outcome in done if outcome.status == "watched"]
    sys.stdout.write(f"{store}: {counts['watched']} watched ({clock(sum(one.seconds for one in watched))} of video, "
                     f"{sum(one.frames for one in watched):,} frames), {counts['present']} stood already, "
                     f"{counts['broken'] + counts['taken']} failed\n")
    for outcome in done:
        if outcome.failed:
            sys.stdout.write(f"{outcome.status}: {outcome.path}: {outcome.detail}\n")
    if thinned := [outcome for outcome in watched if outcome.detail]:
        sys.stderr.write(f"{len(thinned)} of the videos were longer than the model's limit on frames, such as "
                         f"{thinned[0].name}: {thinned[0].detail}; --max-frames reads more\n")


def _row(films: Any, name: str) -> dict[str, Any]:
    """What the list says of a film."""
    size = films.path(name).stat().st_size
    try:
        facts = films.info(name)
    except AuroraError as error:
        return {"file_bytes": size, "damaged": str(error)}
    return {"frames": facts["now"]["frames"], "seconds": facts["now"]["seconds"], "state_bytes": facts["state_bytes"],
            "file_bytes": size, "checkpoint_seconds": facts["checkpoint_seconds"], "watched": facts["name"],
            "id": facts["id"], "version": facts["identity"]["version"]}


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
