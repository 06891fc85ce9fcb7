"""`aurora convert`: weights of a part from one layout to another."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from aurora.errors import AuroraError
from aurora.weights.convert import convert as run
from aurora.weights.report import Report, refuse_gaps, show

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def convert(options: Namespace) -> int:
    """Writes the weights, and says what became of every name."""
    source, target = Path(options.source), Path(options.target)
    if target.exists() and source.exists() and target.samefile(source):
        raise AuroraError(f"{target} is the source itself; give another target")

    def accept(report: Report) -> None:
        if options.report:
            text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
            Path(options.report).write_text(text, encoding="utf-8")
        show(report, Console(highlight=False))
        refuse_gaps(report, missing_too=options.allow_missing, unexpected_too=options.allow_unexpected)

    with bytes_shown("writing") as progress:
        slot, part = ("vision", options.vision) if options.vision else ("backbone", options.backbone)
        run(source, target, slot=slot, part=part, to=options.to, dtype=options.dtype,
            force=options.force, shard_bytes=size_in_bytes(options.shard_size), accept=accept, progress=progress)
    sys.stdout.write(f"written to {target}\n")
    return 0


def size_in_bytes(text: str) -> int:
    """'5GB' → 5,000,000,000. AuroraError for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise AuroraError(f"--shard-size {text!r} is no size; 5GB or 500MB is "
                          f"(units: {', '.join(filter(None, UNITS))})")
    return max(1, int(float(found[1]) * UNITS[found[2]]))


@contextmanager
def bytes_shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, all: progress.update(bar, completed=done, total=all)
