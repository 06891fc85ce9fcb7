"""What commands write: answers, tables and JSON to standard output, progress to standard error."""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from typing_extensions import Self

PIPED_WIDTH = 120
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
BYTES = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


def write_json(value: object) -> None:
    """A value for programs."""
    escaped = not sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=escaped) + "\n")


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


def progress(*columns: str | ProgressColumn, expand: bool = False) -> Progress:
    """Bars on standard error; nothing where that is not a terminal."""
    console = Console(stderr=True)
    shown = sys.stderr.isatty() and console.is_interactive
    return Progress(*columns, console=console, transient=True, disable=not shown, expand=expand)


@contextmanager
def progress_bar(title: str, *columns: str | ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """One bar, as a function that is called with how much is done, and of how much."""
    with progress(*columns) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


class Waiting:
    """A line on standard error with what is waited for, and for how long, below whatever else is written there.
    Nothing where that is not a terminal."""

    def __init__(self, text: str) -> None:
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bars = progress(SpinnerColumn("line"), TimeElapsedColumn(), TextColumn(
            "{task.description}", markup=False, table_column=rest), expand=True)
        self._task = self._bars.add_task(text, total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Goes on, for this."""
        self._bars.update(self._task, description=text)
        self._bars.start()

    def stop(self) -> None:
        """Makes room for something else; the time begins anew."""
        self._bars.stop()
        self._bars.reset(self._task, total=None)

    def stream(self, pieces: Iterable[str]) -> None:
        """Writes a text to standard output as it comes, and ends the line even when it is interrupted."""
        try:
            for piece in pieces:
                self.stop()
                sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
                sys.stdout.flush()
        finally:
            self.stop()
            sys.stdout.write("\n")
            sys.stdout.flush()


def printable(text: str) -> str:
    """A text without what steers a terminal, which a model may say."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def clock(seconds: float) -> str:
    """1:02 or 1:00:02."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
