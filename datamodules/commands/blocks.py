import sys
from typing import Annotated

import typer

from aurora.commands._options import positive, require_writable_folder


def blocks(
    *,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the data is written.")],
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 0,
    scale: Annotated[float, typer.Option(metavar="R", parser=positive, help="Size relative to the full set.")] = 1.0,
) -> None:
    """Make the embedded data set.

    Writes the shards and the evaluation of Blocks world: videos of coloured shapes with captions and questions. The
    same seed and scale give the same files.

    \b
    example:
      aurora blocks data/blocks --scale 0.1
    """
    require_writable_folder(folder)

    from ..blocks.build import build

    for dataset, count in build(folder, seed=seed, scale=scale).items():
        sys.stdout.write(f"{folder}/{dataset}: {count}\n")
