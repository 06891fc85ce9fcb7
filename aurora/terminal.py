"""What commands write: tables and JSON to standard output, progress to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

PIPED_WIDTH = 120
BYTES = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


def write_json(value: object) -> None:
    """A value for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def stdout() -> Console:
    """Standard output. Where that is not a terminal, lines are as long as they are, and tables have `PIPED_WIDTH`."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, markup=False, soft_wrap=not terminal, width=None if terminal else PIPED_WIDTH)


def table(*columns: str, numbers: Collection[str] | None = None, title: str | None = None) -> Table:
    """An empty table. Columns of numbers, all but the first unless they are named, stand to the right."""
    numbers = columns[1:] if numbers is None else numbers
    made = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=name in numbers)
    return made


def progress(*columns: str | ProgressColumn) -> Progress:
    """Bars on standard error; nothing where that is not a terminal."""
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


@contextmanager
def progress_bar(title: str, *columns: str | ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """One bar, as a function that is called with how much is done, and of how much."""
    with progress(*columns) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
