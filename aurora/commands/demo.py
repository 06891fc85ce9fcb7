"""`aurora demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from aurora.commands._options import Overrides, positive


def demo(
    *,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where everything is written.")] = "runs/demo",
    overrides: Overrides,
    seed: Annotated[int, typer.Option(metavar="N", help="Of data and training.")] = 0,
    scale: Annotated[float, typer.Option(
        metavar="R", parser=positive, help="Size of data and training relative to the full demo.")] = 1.0,
) -> None:
    """Run everything in small, and write a report.

    Makes Blocks world, trains the four stages on it, evaluates, answers questions about held-out videos and writes
    report.html and result.json. A stopped demo goes on where it was.

    \b
    example:
      aurora demo runs/demo
    """
    from aurora.demo.run import demo

    demo(folder, scale=scale, seed=seed, overrides=overrides)
