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


def _build(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a dataset (`aurora shards list`, or a yaml like theirs) or a "
                        "source (`aurora list source`)")
    parser.add_argument("input", metavar="INPUT", help="the folder with the dataset's files; nothing above it is read")
    parser.add_argument("output", metavar="OUTPUT", help="the folder for its shards")
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OPTION", nargs="*", help="source.NAME=VALUE or executor.NAME=VALUE")
    parser.add_argument("--samples-per-shard", type=int, default=5000, metavar="N", help="(default %(default)s)")
    parser.add_argument("--shard-bytes", type=int, default=1 << 30, metavar="N",
                        help="a shard ends with the sample that takes it past this (default %(default)s)")
    parser.add_argument("--executor", metavar="NAME", default="process",
                        help="serial, process, slurm or ray (default %(default)s)")
    parser.add_argument("--max-bad-rate", type=float, default=0.05, metavar="R",
                        help="share of entries that may be unusable (default %(default)s)")
    parser.add_argument("--retry", action="store_true", help="write the shards again that left entries out")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier build wrote into OUTPUT")
    _counting(parser)
    group = parser.add_argument_group("smaller media")
    group.add_argument("--transcode", action="store_true", help="store pictures as JPEG and videos as H.264")
    group.add_argument("--short-side", type=int, default=384, metavar="N", help="in pixels (default %(default)s)")
    group.add_argument("--quality", type=int, default=90, metavar="N", help="of JPEG (default %(default)s)")
    group.add_argument("--fps", type=float, default=2.0, metavar="N", help="of videos (default %(default)s)")


def _counting(parser: ArgumentParser) -> None:
    parser.add_argument("--count", nargs=2, metavar=("TOKENIZER", "PROMPT"),
                        help="count the tokens of all texts now, so that training need not: names of parts, or "
                             "'{name: hf, path: ...}'")


def _work(parser: ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the folder that was given to `aurora shards build`")
    parser.add_argument("--task", type=int, required=True, metavar="N", help="the number of the shard")
    _counting(parser)


def _list(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="show only this one, with all that is known of it")
    parser.add_argument("--json", action="store_true", help="for programs")


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
    "list": What(
        "cataloguing", "list the public datasets that are known by name",
        "Shows the catalogue: what each dataset is, how many samples its makers state, under which licence, and which "
        "mixture reads it. With a name or the path of a yaml, everything that is said of one dataset.",
        "aurora shards list\n  aurora shards list sharegpt4video", _list),
    "build": What(
        "sharding", "make shards of a dataset as its makers publish it",
        "Reads the annotations once, cuts them into shards and writes these side by side. Entries that cannot be used "
        "are left out and listed in OUTPUT/skipped.jsonl. A build that was stopped goes on where it was when it is "
        "started again, and the same files give the same bytes.",
        "aurora shards build sharegpt4v downloads/sharegpt4v data/shards/sharegpt4v\n"
        "  aurora shards build table downloads/mine data/shards/mine source.files=rows.csv source.question=q "
        "source.answer=a source.image=file\n"
        "  aurora shards build llava_video downloads/videos data/shards/videos --transcode --fps 1", _build),
    "work": What(
        "sharding", "write one shard of a build, as the jobs of a cluster do",
        "Does one task of what `aurora shards build` has planned.", "aurora shards work data/shards/mine --task 7",
        _work),
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
