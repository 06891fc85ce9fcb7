"""Everything that writes says which file had no room, on a disk that is really full."""

import json

import numpy as np
import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.registry import PROMPT, READER, TOKENIZER
from datamodules.build.plan import BuildOrder, make_plan
from datamodules.inspect.preview import write_preview
from datamodules.inspect.stats import DigestTask, shard_digests
from datamodules.loading.bad_samples import BadSamples
from datamodules.loading.rows import Skipped
from datamodules.plan.arrays import shared_arrays
from datamodules.plan.lengths import text_lengths
from datamodules.shards.index import index_shard, load_index
from datamodules.shards.writing import write_index, write_shard
from tools.tiny_shards import write_shards


@pytest.fixture
def full(make, small_disk):
    """A full disk with the shards of a dataset in `set`."""
    write_shards(make.mixed(4), small_disk / "set")
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return small_disk


def bad_sample(disk):
    BadSamples(0.5, 10, disk / "bad.jsonl").add(1, [Skipped("set", "000000.tar", "k", "image", "?")])


def arrays(disk):
    def fill(allocate):
        allocate("numbers", np.dtype("i8"), 100_000)[:] = 1
        return {}

    shared_arrays([disk / "set"], "id", fill)


def preview(disk):
    write_preview([disk / "set"], disk / "page.html", samples=4, kinds=[], reader=READER.build({"name": "pyav"}))


def lengths(disk):
    text_lengths(load_index(disk / "set"), PROMPT.build({"name": "sandwich"}), TOKENIZER.build({"name": "bytes"}))


def plan(disk):
    folder = disk.parent
    (folder / "a.jsonl").write_text(json.dumps({"conversations": "?" * 10_000}) + "\n")
    make_plan(BuildOrder(folder=str(folder), source={"name": "llava", "annotations": "a.jsonl"}), disk)


@pytest.mark.parametrize(("name", "write"), [
    ("000000.tar", lambda disk: write_shard([], disk / "000000.tar")),
    ("000000.index.npz", lambda disk: index_shard(disk / "set" / "000000.tar")),
    ("index.samples.npy", lambda disk: write_index(disk / "set")),
    ("000000.digests.npz", lambda disk: shard_digests(DigestTask(disk / "set", 0))),
    (r"000000\.lengths-\S+", lengths), (r"\.build", plan), ("page.html", preview), ("bad.jsonl", bad_sample),
    ("set/id", arrays),
])
def test_a_file_without_room_is_named(full, name, write):
    with pytest.raises(AuroraError, match=rf"/{name}: no room left on the disk .*; make room and run again"):
        write(full)
    assert not list(full.rglob("*.tmp"))


def test_findings_without_room_are_named(full, capsys):
    (full / "set" / "another.tar").touch()  # which is found
    assert main(["shards", "validate", str(full / "set"), "--executor", "serial", "--findings",
                 str(full / "found.jsonl")]) == 2
    assert "found.jsonl: no room left on the disk" in capsys.readouterr().err
