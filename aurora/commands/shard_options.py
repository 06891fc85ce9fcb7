"""What `aurora shards` may be told."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import NamedTuple

SHARDS = (
    "Shards are WebDataset tars with an index and a manifest each: what training reads. A dataset is a folder of them."
)
EXAMPLE = "aurora shards index data/mine"


class What(NamedTuple):
    """One command below `aurora shards`: the function of its name in a module of `aurora.commands`."""

    module: str
    summary: str
    description: str
    example: str
    add: Callable[[ArgumentParser], None]


def _index(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="+", help="a folder of tars")


WHAT = {
    "index": What(
        "sharding", "index tars that are already there",
        "Measures every tar of a folder that has no manifest yet and writes the folder's index: what training needs to "
        "read tars that another program wrote. Members that the format does not know are refused.",
        "aurora shards index data/mine data/yours", _index),
}
