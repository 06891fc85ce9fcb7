"""`aurora shards validate`, `stats` and `preview`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from aurora.commands._options import Json, split_overrides
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.config import Config
    from aurora.interfaces import Executor

    from ..inspect.validate import Finding

SHOWN = 20  # findings that are spelt out on the screen
Folders: TypeAlias = Annotated[list[str], typer.Argument(metavar="FOLDER|OVERRIDE", help=(
    "Folders of shards; KEY=VALUE with a key of the config is an override, such as sampling.fps=2."))]
ExecutorName: TypeAlias = Annotated[str, typer.Option(
    "--executor", metavar="NAME", help="What runs the work on each shard, see `aurora list executor`.")]


def _samples(text: str | int) -> int | None:
    if not str(text).isdigit() and text != "all":
        raise AuroraError("give a number of samples per shard, 0 for none, or all")
    return None if text == "all" else int(text)


def validate(
    *,
    words: Folders,
    decode: Annotated[int | None, typer.Option(metavar="N", parser=_samples, help=(
        "Samples of every shard whose media are decoded, spread over it, or all."))] = 16,
    findings: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Write everything that is wrong as lines of JSON.")] = None,
    executor: ExecutorName = "process",
    json_output: Json = False,
) -> int:
    """Check shards against their manifests and decode samples.

    Compares every byte with what was written (sha256), the folder's index with that of each shard, and decodes samples.
    What is wrong is listed by reason with its shard, key and origin; the exit status is 1 then.

    \b
    example:
      aurora shards validate data/shards/* --decode all --findings wrong.jsonl
    """
    from aurora.files import replace_file, require_free
    from aurora.terminal import progress, write_json

    from ..inspect.validate import check_shard, tasks

    folders, config = _read(words)
    if findings is not None:
        require_free(findings, folder=False, force=True)
        findings.parent.mkdir(parents=True, exist_ok=True)
    checks = make_executor(executor)
    found: list[Finding] = []
    datasets = {}
    for folder in folders:
        work, wrong = tasks(folder, decode=decode, reader=dict(config.model.reader))
        checking = checks.run(check_shard, work)
        with progress() as bars:
            done = list(bars.track(checking, total=len(work), description=f"checking {folder}"))
        wrong += [finding for one in done for finding in one.findings]
        datasets[folder] = {
            "shards": len(work), "samples": sum(one.samples for one in done),
            "decoded": sum(one.decoded for one in done),
            "wrong": dict(Counter(finding.reason for finding in wrong).most_common()),
        }
        found += wrong
    if findings is not None:
        lines = (json.dumps(finding._asdict(), ensure_ascii=False) + "\n" for finding in found)
        replace_file(findings, "".join(lines).encode())
    if json_output:
        write_json({"datasets": datasets, "findings": [one._asdict() for one in found]})
    else:
        _show_checks(datasets, found)
    return 1 if found else 0


def stats(
    *,
    words: Folders,
    keep_ratio: Annotated[list[float], typer.Option(
        metavar="R", default_factory=list, show_default=False,
        help="Count tokens at this ratio. May be repeated. Default: 1 and the config's.")],
    evaluation: Annotated[list[str], typer.Option(
        metavar="FOLDER", default_factory=list, show_default=False,
        help="A folder with questions.jsonl: count what of its media and answers is in the shards.")],
    executor: ExecutorName = "process",
    json_output: Json = False,
) -> None:
    """Count lengths, tokens, duplicates, overlap with evaluation sets.

    Counts what datasets hold, with the tokenizer, prompt, encoder and sampling of a config, and what stands twice:
    within a dataset, between datasets, and in evaluation sets. Digests are kept beside the shards.

    \b
    example:
      aurora shards stats data/shards/* --evaluation data/heldout sampling.fps=2
    """
    import torch

    from aurora.assemble import build_model
    from aurora.terminal import stdout, table, write_json

    from ..inspect.stats import describe, read_evaluation

    folders, config = _read(words)
    with torch.device("meta"):
        model = build_model(config.model)
    ratios = keep_ratio or [1.0, config.model.keep_ratio]
    counted = describe(
        [Path(folder) for folder in folders], tokenizer=model.tokenizer, prompt=model.prompt,
        layouts={ratio: model.visual_layout(ratio) for ratio in dict.fromkeys(ratios)},
        sampling=config.model.sampling, executor=make_executor(executor),
        evaluations=[read_evaluation(folder) for folder in evaluation],
    )
    if json_output:
        write_json(counted)
        return
    datasets, console = counted["datasets"], stdout()
    shown = table("", *datasets)
    # every dataset has the same lines in the same order
    for lines in zip(*map(_lines, datasets.values()), strict=True):
        shown.add_row(lines[0][0], *(value for _, value in lines))
    console.print(shown)
    for pair in counted["shared"]:
        first, second = pair["between"]
        console.print(f"{first} and {second} share {pair['samples']:,} samples, {pair['media']:,} media, "
                      f"{pair['conversations']:,} conversations")


def preview(
    *,
    words: Folders,
    output: Annotated[Path | None, typer.Option(
        metavar="FILE", help="The page to write. Default: FOLDER/preview.html.")] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples of each folder.")] = 24,
    kind: Annotated[list[str], typer.Option(
        metavar="KIND", default_factory=list, show_default=False,
        help="Only text, image, images or video. May be repeated.")],
) -> None:
    """Write a page with pictures and conversations of some samples.

    Writes one HTML file that needs nothing else: pictures, frames of videos, conversations.

    \b
    example:
      aurora shards preview data/shards/mine --samples 50 --kind video
    """
    from aurora.registry import READER

    from ..inspect.preview import write_preview

    folders, config = _read(words)
    path = output or Path(folders[0], "preview.html")
    shown = write_preview([Path(folder) for folder in folders], path, samples=samples, kinds=kind,
                          reader=READER.build(config.model.reader))
    sys.stdout.write(f"{path}: {shown} samples\n")


def _read(words: Sequence[str]) -> "tuple[list[str], Config]":
    """The folders among the words, and the config of the overrides among them."""
    from aurora.config import load_config

    folders, overrides = split_overrides(words)
    if not folders:
        raise AuroraError("no folder of shards was given")
    return folders, load_config(*overrides)


def make_executor(name: str, given: Mapping[str, Any] | None = None, output: Path | None = None) -> "Executor":
    """The part with further options; `output` is the folder of a build, below which slurm keeps its script."""
    from aurora.config import named_part
    from aurora.registry import EXECUTOR

    config = {**named_part("executor", name), **(given or {})}
    if name == "slurm":
        if output is None:
            raise AuroraError("executor 'slurm' only builds shards; serial, process and ray check them")
        config.setdefault("folder", str(output / ".build"))
    return EXECUTOR.build(config)


def _show_checks(datasets: Mapping[str, Mapping[str, Any]], found: "Sequence[Finding]") -> None:
    from aurora.terminal import stdout, table

    numbers = ("shards", "samples", "decoded")
    shown = table("dataset", *numbers, "wrong", numbers=numbers)
    for name, row in datasets.items():
        wrong = ", ".join(f"{count} {reason}" for reason, count in row["wrong"].items())
        shown.add_row(name, *(f"{row[key]:,}" for key in numbers), wrong or "nothing")
    stdout().print(shown)
    for one in found[:SHOWN]:
        place = "/".join(part for part in (one.dataset, one.shard, one.key) if part)
        sys.stdout.write(f"{place}: {one.reason}: {one.detail}{f' (id {one.origin})' if one.origin else ''}\n")
    if len(found) > SHOWN:
        sys.stdout.write(f"and {len(found) - SHOWN} more: --findings FILE writes all of them\n")


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and the value of every line about a dataset; a line without a value heads those that follow."""
    yield "samples", f"{row['samples']:,}"
    yield from _counts(row["kinds"])
    for key in ("shards", "media", "turns"):
        yield key, f"{row[key]:,}"
    yield "megabytes", f"{row['bytes'] / 1e6:,.1f}"
    yield "frames", f"{row['frames']['total']:,.0f}"
    yield "hours of video", f"{row['seconds']['total'] / 3600:,.2f}"
    for ratio, spread in row["tokens"].items():
        yield f"tokens, keep ratio {ratio}", f"{spread['total']:,.0f}"
    yield "5 %, half, 95 %, most of", ""
    spreads = {key.replace("_", " "): row[key] for key in ("seconds", "short_side", "text_tokens", "frames")}
    spreads |= {f"tokens, keep ratio {ratio}": spread for ratio, spread in row["tokens"].items()}
    for title, spread in spreads.items():
        yield f"· {title}", "  ".join(f"{value:,.0f}" for value in spread["quantiles"]) or "–"
    yield "there before", ""
    yield from _counts(row["duplicates"])
    yield "broken", ""
    yield from _counts({"media": row["broken_media"], "records": row["unreadable"]})
    for name, both in row["in_evaluation"].items():
        yield f"in {name}", ""
        yield from _counts({"its media": both["media"], "its answers": both["turns"]})


def _counts(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    yield from ((f"· {name}", f"{count:,}") for name, count in counts.items())
