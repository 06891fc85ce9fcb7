import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from aurora.commands._options import Json, require_writable_folder
from aurora.errors import AuroraError, suggest

from ._shards_checks import make_executor, preview, stats, validate

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..build.build import TextCounter

Tokens: TypeAlias = Annotated[tuple[str, str] | None, typer.Option("--count", metavar="TOKENIZER PROMPT", help=(
    "Count the tokens of all texts now, so that training need not: names of parts, or '{name: hf, path: ...}'."))]

shards = typer.Typer(add_completion=False, help=(
    "Turn datasets into shards, check them, look at them.\n\n"
    "Shards are WebDataset tars with an index and a manifest each: what training reads. A dataset is a folder of them."
    "\n\n\b\nexample:\n  aurora shards index data/mine"))


@shards.command("list")
def show_catalogue(
    *,
    name: Annotated[str | None, typer.Argument(
        metavar="NAME", help="Show only this one, with all that is known of it.")] = None,
    json_output: Json = False,
) -> None:
    """List the public datasets that are known by name.

    Shows the catalogue: what each dataset is, how many samples its makers state, under which licence, and which mixture
    reads it. With a name or the path of a YAML file, everything that is known of one dataset.

    \b
    example:
      aurora shards list
      aurora shards list sharegpt4video
    """
    from aurora.terminal import write_json

    from ..build.catalogue import known_datasets, load_dataset

    found = {one: asdict(load_dataset(one)) for one in ([name] if name else known_datasets())}
    if json_output:
        write_json(found)
    elif name:
        for key, value in found[name].items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            sys.stdout.write(f"{key:<9} " + text.strip().replace("\n", "\n" + " " * 10) + "\n")
    else:
        _show_all(found)


@shards.command()
def build(
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=(
        "A dataset (`aurora shards list`, or a YAML file like theirs) or a source (`aurora list source`)."))],
    input: Annotated[Path, typer.Argument(
        metavar="INPUT", help="The folder with the dataset's files; nothing above it is read.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder for its shards.")],
    overrides: Annotated[list[str], typer.Argument(
        metavar="OVERRIDE", default_factory=list, show_default=False,
        help="source.KEY=VALUE or executor.KEY=VALUE, see `aurora list`.")],
    samples_per_shard: Annotated[int, typer.Option(metavar="N", help="Samples per shard.")] = 5000,
    shard_bytes: Annotated[int, typer.Option(
        metavar="N", help="A shard ends with the sample that takes it past this.")] = 1 << 30,
    executor: Annotated[str, typer.Option(metavar="NAME", help="serial, process, slurm or ray.")] = "process",
    max_bad_rate: Annotated[float, typer.Option(
        metavar="R", min=0, max=1, help="Share of entries that may be unusable.")] = 0.05,
    retry: Annotated[bool, typer.Option("--retry", help="Write the shards again that left entries out.")] = False,
    restart: Annotated[bool, typer.Option(
        "--restart", help="Discard what an earlier build wrote into OUTPUT.")] = False,
    count: Tokens = None,
    transcode: Annotated[bool, typer.Option(
        "--transcode", help="Store pictures as JPEG and videos as H.264.", rich_help_panel="Smaller media")] = False,
    short_side: Annotated[int, typer.Option(
        metavar="N", help="Short side in pixels.", rich_help_panel="Smaller media")] = 384,
    quality: Annotated[int, typer.Option(metavar="N", help="JPEG quality.", rich_help_panel="Smaller media")] = 90,
    fps: Annotated[float, typer.Option(
        metavar="N", help="Frames per second of videos.", rich_help_panel="Smaller media")] = 2.0,
) -> None:
    """Make shards of a dataset as its makers publish it.

    Reads the annotations once, cuts them into shards and writes these side by side. Entries that cannot be used are
    left out and listed in OUTPUT/skipped.jsonl. A build that was stopped resumes when it is started again,
    and the same files give the same bytes.

    \b
    example:
      aurora shards build sharegpt4v downloads/sharegpt4v data/shards/sharegpt4v
      aurora shards build table downloads/mine data/shards/mine \\
        source.files=rows.csv source.question=q source.answer=a source.image=file
      aurora shards build llava_video downloads/videos data/shards/videos \\
        --transcode --fps 1
    """
    from rich.progress import BarColumn, TimeRemainingColumn

    from aurora.terminal import progress

    from ..build import build as builds
    from ..build.media import Transcode
    from ..build.plan import BuildOrder, make_plan

    given = _given(overrides)
    smaller = Transcode(short_side=short_side, quality=quality, fps=fps)
    options, about = _source(source)
    if not input.is_dir():
        raise AuroraError(f"{input} is not a folder; give the one that holds the dataset's files")
    require_writable_folder(output)
    if output.resolve() == input.resolve():
        raise AuroraError(f"{output} is the dataset's own folder; give another one for its shards")
    order = BuildOrder(folder=str(input.resolve()), source={**options, **given["source"]}, about=about,
                       samples_per_shard=samples_per_shard, shard_bytes=shard_bytes,
                       transcode=smaller if transcode else None)
    runner, counted = make_executor(executor, given["executor"], output), _counted(count)
    output.mkdir(parents=True, exist_ok=True)
    if restart:
        builds.clear(output)
    with progress("{task.description}", BarColumn(), "{task.fields[text]}", TimeRemainingColumn()) as bars:
        reading = bars.add_task("reading annotations", total=None, text="")
        plan = make_plan(order, output, tick=lambda count: bars.update(reading, text=f"{count:,} entries"))
        tasks = builds.build_tasks(output, plan, counted)
        if retry:
            builds.retry_skipped(tasks)
        rows = builds.run_tasks(tasks, runner, entries=plan.entries, max_bad_rate=max_bad_rate)
        _watch(bars, rows, plan.entries)
        joined = builds.join(output, plan, counted)
    _show(output, joined)
    if plan.broken:
        raise AuroraError(f"{plan.broken}. The shards hold what stands before")


@shards.command()
def work(
    *,
    output: Annotated[Path, typer.Argument(
        metavar="OUTPUT", help="The folder that was given to `aurora shards build`.")],
    task: Annotated[int, typer.Option(metavar="N", help="The number of the shard.")],
    count: Tokens = None,
) -> None:
    """Write one shard of a build, as the jobs of a cluster do.

    Does one task of what `aurora shards build` has planned.

    \b
    example:
      aurora shards work data/shards/mine --task 7
    """
    from ..build.build import BuildTask, write_task

    row = write_task(BuildTask(output, task, _counted(count)))
    sys.stdout.write(f"{row['name']}: {row['samples']} samples, {row['bytes']} bytes, skipped {row['skipped']}\n")


@shards.command()
def index(*, folders: Annotated[list[str], typer.Argument(metavar="FOLDER", help="A folder of tars.")]) -> None:
    """Index tars that are already there.

    Measures every tar of a folder that has no manifest yet and writes the folder's index: what training needs to read
    tars that another program wrote. Samples that cannot be used are left out and named, members that the format does
    not know are not read and counted.

    \b
    example:
      aurora shards index data/mine data/yours
    """
    from ..shards.index import sidecar
    from ..shards.writing import write_index

    for folder in folders:
        found = write_index(folder)
        sys.stdout.write(f"{folder}: {len(found)} samples in {len(found.shards)} shards\n")
        for shard in found.shards:
            manifest = json.loads(sidecar(found.folder / shard["name"], "manifest.json").read_bytes())
            for bad in manifest["bad"]:
                sys.stdout.write(f"  {shard['name']}: {bad['key']}: {bad['reason']}: {bad['detail']}\n")
            for extension, count in manifest.get("unread", {}).items():
                sys.stdout.write(f"  {shard['name']}: {count} members .{ascii(extension)[1:-1]} are not read\n")


for check in (validate, stats, preview):
    shards.command()(check)


def _given(overrides: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The options behind `source.` and `executor.`."""
    from aurora.config import parse_override

    found: dict[str, dict[str, Any]] = {"source": {}, "executor": {}}
    for override in map(parse_override, overrides):
        slot, dot, option = override.key_or_group.partition(".")
        if not dot or slot not in found or override.is_delete():
            raise AuroraError(f"{override.input_line!r} is not an override of a build; give source.KEY=VALUE or "
                              "executor.KEY=VALUE")
        found[slot][option] = override.value()
    return found


def _source(name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The source of a dataset of the catalogue and what is known of it, or a source part by its name."""
    from aurora.config import named_part
    from aurora.registry import SOURCE

    from ..build.catalogue import known_datasets, load_dataset

    known = known_datasets()
    if name in known or name.endswith((".yaml", ".yml")):
        dataset = load_dataset(name)
        about = {key: getattr(dataset, key) for key in ("name", "title", "homepage", "licence")}
        return {**named_part("source", dataset.source["name"]), **dataset.source}, about
    if name in SOURCE.known():
        return named_part("source", name), None
    raise AuroraError(f"no dataset and no source named {name!r}.{suggest(name, [*known, *SOURCE.known()])}")


def _counted(given: tuple[str, str] | None) -> "TextCounter | None":
    """What texts are counted with: names of parts, or their configs as YAML."""
    if given is None:
        return None
    import yaml

    from aurora.config import named_part

    from ..build.build import TextCounter

    try:
        tokenizer, prompt = (
            value if isinstance(value := yaml.safe_load(text), dict) else named_part(slot, text)
            for slot, text in zip(("tokenizer", "prompt"), given, strict=True))
    except yaml.YAMLError as error:
        raise AuroraError(f"--count {' '.join(given)}: {' '.join(str(error).split())}; give names of parts, or "
                          "'{name: hf, path: ...}'") from error
    return TextCounter(tokenizer, prompt)


def _watch(progress: "Progress", rows: Iterable[Mapping[str, Any]], entries: int) -> None:
    """Shows how far the shards are while they come."""
    task = progress.add_task("writing shards", total=entries, text="")
    written = 0
    for row in rows:
        written += row["bytes"]
        progress.advance(task, row["entries"])
        shown = progress.tasks[task]
        progress.update(task, text=f"{shown.completed:,.0f} of {entries:,}, {shown.speed or 0:,.0f}/s, "
                                   f"{written / 2**30:.2f} GiB")


def _show(output: Path, built: Mapping[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in built["kinds"].items() if count)
    sys.stdout.write(f"{output}: {built['samples']} samples ({kinds}) in {built['shards']} shards, "
                     f"{built['bytes'] / 2**30:.2f} GiB\n")
    if built["skipped"]:
        sys.stdout.write(f"skipped {json.dumps(built['skipped'])}, listed in {output / 'skipped.jsonl'}\n")


def _show_all(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of the datasets, with the mixtures of ours that read them."""
    from aurora.config import known_yamls, load_mixture
    from aurora.mixture import read_mixture
    from aurora.terminal import stdout, table

    mixtures = {name: read_mixture(name, load_mixture(name)).datasets for name in known_yamls("mixture")}
    console, shown = stdout(), table("name", "title", "kinds", "samples", "licence", "read by", numbers=("samples",))
    for name, dataset in found.items():
        samples = dataset["samples"]
        shown.add_row(name, dataset["title"], " ".join(dataset["kinds"]), "" if samples is None else f"{samples:,}",
                      dataset["licence"], " ".join(mixture for mixture, read in mixtures.items() if name in read))
    console.print(shown)
    console.print("`aurora shards list NAME` shows one; `aurora shards build NAME INPUT OUTPUT` makes its shards. "
                  "Licences are as their makers state them; check them yourself.")
