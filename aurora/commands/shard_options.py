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


def _folders(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="+", help="a folder of shards")
    parser.set_defaults(overrides=[])


def _executor(parser: ArgumentParser) -> None:
    parser.add_argument("--executor", metavar="NAME", default="process",
                        help="what runs the work on each shard, see `aurora list executor` (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _validate(parser: ArgumentParser) -> None:
    _folders(parser)
    parser.add_argument("--decode", metavar="N", default="16",
                        help="samples of every shard whose media are decoded, spread over it, or all (default "
                             "%(default)s)")
    parser.add_argument("--findings", metavar="FILE", help="write everything that is wrong as lines of JSON")
    _executor(parser)


def _stats(parser: ArgumentParser) -> None:
    _folders(parser)
    parser.add_argument("--keep-ratio", type=float, action="append", metavar="R",
                        help="count tokens at this ratio; may be repeated (default: 1 and the config's)")
    parser.add_argument("--evaluation", action="append", default=[], metavar="FOLDER",
                        help="a folder with questions.jsonl: count what of its media and answers is in the shards")
    _executor(parser)


def _preview(parser: ArgumentParser) -> None:
    _folders(parser)
    parser.add_argument("--output", metavar="FILE", help="(default FOLDER/preview.html)")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="of each folder (default %(default)s)")
    parser.add_argument("--kind", action="append", default=[], metavar="KIND",
                        help="only text, image, images or video; may be repeated")


WHAT = {
    "index": What(
        "sharding", "index tars that are already there",
        "Measures every tar of a folder that has no manifest yet and writes the folder's index: what training needs to "
        "read tars that another program wrote. Members that the format does not know are refused.",
        "aurora shards index data/mine data/yours", _index),
    "validate": What(
        "inspecting", "check shards against their manifests and decode samples",
        "Compares every byte with what was written (sha256), the folder's index with that of each shard, and decodes "
        "samples. What is wrong is listed by reason with its shard, key and origin; the exit status is 1 then.",
        "aurora shards validate data/shards/* --decode all --findings wrong.jsonl", _validate),
    "stats": What(
        "inspecting", "lengths, tokens, duplicates, overlap with evaluation sets",
        "Counts what datasets hold, with the tokenizer, prompt, encoder and sampling of a config (overrides after "
        "`--`), and what stands twice: within a dataset, between datasets, and in evaluation sets. Digests are kept "
        "beside the shards.",
        "aurora shards stats data/shards/* --evaluation data/heldout -- sampling.fps=2", _stats),
    "preview": What(
        "inspecting", "a page with pictures and conversations of some samples",
        "Writes one HTML file that needs nothing else: pictures, frames of videos, conversations.",
        "aurora shards preview data/shards/mine --samples 50 --kind video", _preview),
}
