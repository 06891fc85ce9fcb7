"""`aurora shards validate`, `stats` and `preview`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError
from aurora.interfaces import Executor, Sampling
from aurora.registry import EXECUTOR, import_part

SHOWN = 20  # findings that are spelt out on the screen


def validate(options: Namespace) -> int:
    """Checks every shard; 1 when anything is wrong."""
    checks = import_part("datamodules.inspect.validate")
    decode = None if options.decode == "all" else _count("--decode", options.decode)
    config, found, datasets = _config(options), [], {}
    for folder in options.folder:
        tasks, findings = checks.tasks(folder, decode=decode, reader=config["reader"])
        done = [*_progress(_executor(options).run(checks.check_shard, tasks), len(tasks), f"checking {folder}")]
        findings += [finding for one in done for finding in one.findings]
        datasets[folder] = {
            "shards": len(tasks), "samples": sum(one.samples for one in done),
            "decoded": sum(one.decoded for one in done),
            "wrong": dict(Counter(finding.reason for finding in findings).most_common()),
        }
        found += findings
    if options.findings is not None:
        lines = (json.dumps(finding._asdict(), ensure_ascii=False) + "\n" for finding in found)
        import_part("aurora.files").replace_file(Path(options.findings), "".join(lines).encode())
    if options.json:
        sys.stdout.write(json.dumps({"datasets": datasets, "findings": [one._asdict() for one in found]}) + "\n")
    else:
        _show_checks(datasets, found)
    return 1 if found else 0


def stats(options: Namespace) -> int:
    """Counts, lengths, duplicates and overlap."""
    import torch

    from aurora.assemble import build_model

    numbers = import_part("datamodules.inspect.stats")
    config = _config(options)
    with torch.device("meta"):
        model = build_model(config)
    ratios = options.keep_ratio or [1.0, config["keep_ratio"]]
    told = numbers.describe(
        [Path(folder) for folder in options.folder], tokenizer=model.tokenizer, prompt=model.prompt,
        layouts={ratio: model.layout(ratio) for ratio in dict.fromkeys(ratios)},
        sampling=Sampling(**config["sampling"]), executor=_executor(options),
        evaluations=[numbers.read_evaluation(folder) for folder in options.evaluation],
    )
    if options.json:
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _show_stats(told)
    return 0


def preview(options: Namespace) -> int:
    """Writes a page that shows samples."""
    from aurora.assemble import build_reader

    folders = [Path(folder) for folder in options.folder]
    path = Path(options.output or folders[0] / "preview.html")
    shown = import_part("datamodules.inspect.preview").write_preview(
        folders, path, samples=options.samples, kinds=options.kind, reader=build_reader(_config(options)))
    sys.stdout.write(f"{path}: {shown} samples\n")
    return 0


def _config(options: Namespace) -> dict[str, Any]:
    from aurora.config import load_config

    return load_config(options.overrides)


def _executor(options: Namespace) -> Executor:
    return EXECUTOR.build({"name": options.executor})


def _count(name: str, value: str) -> int:
    if not value.isdigit():
        raise AuroraError(f"{name} {value}: give a number of samples per shard, 0 for none, or all")
    return int(value)


def _progress(results: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(results, title, total, console=Console(stderr=True), transient=True,
                 disable=not sys.stderr.isatty())


def _show_checks(datasets: Mapping[str, Mapping[str, Any]], found: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("dataset", "shards", "samples", "decoded", "wrong"):
        table.add_column(name, justify="left" if name in ("dataset", "wrong") else "right")
    for name, row in datasets.items():
        wrong = ", ".join(f"{count} {reason}" for reason, count in row["wrong"].items())
        table.add_row(name, *(f"{row[key]:,}" for key in ("shards", "samples", "decoded")), wrong or "nothing")
    Console(highlight=False).print(table)
    for one in found[:SHOWN]:
        place = "/".join(part for part in (one.dataset, one.shard, one.key) if part)
        sys.stdout.write(f"{place}: {one.reason}: {one.detail}{f' (id {one.origin})' if one.origin else ''}\n")
    if len(found) > SHOWN:
        sys.stdout.write(f"and {len(found) - SHOWN} more: --findings FILE writes all of them\n")


def _show_stats(told: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(told["datasets"])
    table = Table()
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    # every dataset has the same lines in the same order
    for lines in zip(*(_lines(told["datasets"][name]) for name in names), strict=True):
        table.add_row(lines[0][0], *(value for _, value in lines))
    console = Console(highlight=False)
    console.print(table)
    for pair in told["shared"]:
        first, second = pair["between"]
        console.print(f"{first} and {second} share {pair['samples']:,} samples, {pair['media']:,} media, "
                      f"{pair['conversations']:,} conversations")


def _lines(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "samples", f"{row['samples']:,}"
    yield from ((f"· {kind}", f"{count:,}") for kind, count in row["kinds"].items())
    for key in ("shards", "media", "turns"):
        yield key, f"{row[key]:,}"
    yield "megabytes", f"{row['bytes'] / 1e6:,.1f}"
    yield "frames", f"{row['frames']['total']:,.0f}"
    yield "hours of video", f"{row['seconds']['total'] / 3600:,.2f}"
    for ratio, spread in row["tokens"].items():
        yield f"tokens, keep ratio {ratio}", f"{spread['total']:,.0f}"
    yield "5 %, half, 95 %, most of", ""
    for title, key in (("· seconds", "seconds"), ("· short side", "short_side"), ("· text tokens", "text_tokens"),
                       ("· frames", "frames")):
        yield title, _quantiles(row[key])
    for ratio, spread in row["tokens"].items():
        yield f"· tokens, keep ratio {ratio}", _quantiles(spread)
    yield "there before", ""
    yield from ((f"· {key}", f"{count:,}") for key, count in row["duplicates"].items())
    yield "broken", ""
    yield "· media", f"{row['broken_media']:,}"
    yield "· records", f"{row['unreadable']:,}"
    for name, both in row["in_evaluation"].items():
        yield f"in {name}", ""
        yield "· its media", f"{both['media']:,}"
        yield "· its answers", f"{both['turns']:,}"


def _quantiles(spread: Mapping[str, Any]) -> str:
    return "  ".join(f"{value:,.0f}" for value in spread["quantiles"]) or "–"
