"""`aurora shards build`, `work` and `index`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from aurora.commands.overriding import configured, part
from aurora.errors import AuroraError, suggest
from aurora.registry import EXECUTOR, SOURCE, import_part

if TYPE_CHECKING:
    from rich.progress import Progress


def index(options: Namespace) -> int:
    """Indexes folders of tars."""
    for folder in options.folder:
        found = import_part("datamodules.shards.writing").write_index(folder)
        sys.stdout.write(f"{folder}: {len(found)} samples in {len(found.shards)} shards\n")
    return 0


def build(options: Namespace) -> int:
    """Plans, writes what is not there yet, and joins."""
    plans, builds = import_part("datamodules.build.plan"), import_part("datamodules.build.build")
    builds.check_rate(options.max_bad_rate)
    output, given = Path(options.output), _given(options.overrides)
    order, executor = _order(options, given["source"]), _executor(options, given["executor"])
    count = _counted(options.count)
    output.mkdir(parents=True, exist_ok=True)
    if options.restart:
        builds.clear(output)
    with _progress() as progress:
        plan = plans.make_plan(order, output, tick=_reading(progress))
        tasks = builds.build_tasks(output, plan, count)
        if options.retry:
            builds.retry_skipped(tasks)
        rows = builds.run_tasks(tasks, executor, entries=plan.entries, max_bad_rate=options.max_bad_rate)
        _watch(progress, rows, plan.entries)
        told = builds.join(output, plan, count)
    _show(output, told)
    if plan.broken:
        raise AuroraError(f"{plan.broken}. The shards hold what stands before")
    return 0


def work(options: Namespace) -> int:
    """Writes one shard of a planned build: what a job of a cluster does."""
    builds = import_part("datamodules.build.build")
    row = builds.write_task(builds.BuildTask(Path(options.output), options.task, _counted(options.count)))
    sys.stdout.write(f"{row['name']}: {row['samples']} samples, {row['bytes']} bytes, skipped {row['skipped']}\n")
    return 0


def _given(overrides: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The options behind `source.` and `executor.`."""
    found: dict[str, dict[str, Any]] = {"source": {}, "executor": {}}
    for text in overrides:
        key, equals, value = text.partition("=")
        slot, dot, option = key.partition(".")
        if not equals or not dot or slot not in found:
            raise AuroraError(f"{text!r} is no option; give source.NAME=VALUE or executor.NAME=VALUE")
        try:
            found[slot][option] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise AuroraError(f"{text!r}: the value is no yaml") from error
    return found


def _order(options: Namespace, given: Mapping[str, Any]) -> Any:
    """What is to be built: of a dataset of the catalogue, or of a source part."""
    plans, media = import_part("datamodules.build.plan"), import_part("datamodules.build.media")
    source, about = _source(options.source)
    folder = Path(options.input)
    if not folder.is_dir():
        raise AuroraError(f"{folder} is no folder; give the one in which the dataset's files lie")
    transcode = media.Transcode(short_side=options.short_side, quality=options.quality, fps=options.fps)
    return plans.Order(
        folder=str(folder.resolve()), source={**source, **given}, about=about,
        samples_per_shard=options.samples_per_shard, shard_bytes=options.shard_bytes,
        transcode=transcode if options.transcode else None)


def _source(name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The source of a dataset of the catalogue and what is known of it, or a source part by its name."""
    catalogue = import_part("datamodules.build.catalogue")
    known = catalogue.known_datasets()
    if name in known or name.endswith((".yaml", ".yml")):
        dataset = catalogue.load_dataset(name)
        told = dict(dataset.source)
        about = {key: getattr(dataset, key) for key in ("name", "title", "homepage", "licence")}
        return {**told, **configured("source", told["name"]), **told}, about
    if name in SOURCE.known():
        return part("source", name), None
    raise AuroraError(f"no dataset and no source named {name!r}.{suggest(name, [*known, *SOURCE.known()])}")


def _executor(options: Namespace, given: Mapping[str, Any]) -> Any:
    config = {**part("executor", options.executor), **given}
    if options.executor == "slurm":
        config.setdefault("folder", str(Path(options.output) / ".build"))
    return EXECUTOR.build(config)


def _counted(given: list[str] | None) -> Any:
    """What texts are counted with: names of parts, or their configs as yaml."""
    if given is None:
        return None
    tokenizer, prompt = (
        value if isinstance(value := yaml.safe_load(text), dict) else part(slot, text)
        for slot, text in zip(("tokenizer", "prompt"), given, strict=True))
    return import_part("datamodules.build.build").Count(tokenizer, prompt)


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield progress


def _reading(progress: Progress) -> Any:
    task = progress.add_task("reading annotations", total=None, told="")
    return lambda entries: progress.update(task, completed=entries, told=f"{entries:,} entries")


def _watch(progress: Progress, rows: Iterable[Mapping[str, Any]], entries: int) -> None:
    """Shows how far the shards are while they come."""
    task = progress.add_task("writing shards", total=entries, told="")
    written = 0
    for row in rows:
        written += row["bytes"]
        progress.advance(task, row["entries"])
        shown = progress.tasks[task]
        progress.update(task, told=f"{shown.completed:,.0f} of {entries:,}, {shown.speed or 0:,.0f}/s, "
                                   f"{written / 2**30:.2f} GiB")


def _show(output: Path, told: Mapping[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in told["kinds"].items() if count)
    sys.stdout.write(f"{output}: {told['samples']} samples ({kinds}) in {told['shards']} shards, "
                     f"{told['bytes'] / 2**30:.2f} GiB\n")
    if told["skipped"]:
        sys.stdout.write(f"skipped {json.dumps(told['skipped'])}, listed in {output / 'skipped.jsonl'}\n")
