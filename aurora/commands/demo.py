from typing import Annotated

import typer

from aurora.commands._options import positive, split_overrides
from aurora.errors import AuroraError


def demo(
    *,
    words: Annotated[list[str], typer.Argument(
        metavar="FOLDER|OVERRIDE", default_factory=list, show_default=False,
        help="Where everything is written, by default runs/demo; and overrides of the training.")],
    seed: Annotated[int, typer.Option(metavar="N", help="Of data and training.")] = 0,
    scale: Annotated[float, typer.Option(
        metavar="R", parser=positive, help="Size of data and training relative to the full demo.")] = 1.0,
) -> None:
    """Run the whole pipeline at small scale, and write a report.

    Makes Blocks world, trains the four stages on it, evaluates, answers questions about held-out videos and writes
    report.html and result.json. A stopped demo resumes.

    \b
    example:
      aurora demo runs/demo
    """
    from aurora.terminal import Waiting

    with Waiting("loading"):
        from aurora.demo.run import demo

    folders, overrides = split_overrides(words)
    if len(folders) > 1:
        raise AuroraError(f"{' '.join(folders)}: give one FOLDER")
    demo(*folders, scale=scale, seed=seed, overrides=overrides)
