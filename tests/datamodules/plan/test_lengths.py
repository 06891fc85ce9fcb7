import os

import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.registry import PROMPT, TOKENIZER
from datamodules.executor import process
from datamodules.plan import lengths as module
from datamodules.plan.lengths import counter, joined_path, text_lengths, write_lengths
from datamodules.shards.format import ShardSample
from datamodules.shards.index import load_index, sidecar
from tools.tiny_shards import write_shards

PROMPT_PART, TOKENIZER_PART = PROMPT.build({"name": "generic"}), TOKENIZER.build({"name": "bytes"})


@pytest.fixture
def index(make, tmp_path):
    """Twelve texts of growing length in three shards."""
    samples = [ShardSample(f"k{number:02d}", {"conversations": [{"from": "human", "value": "?"},
                                                                 {"from": "gpt", "value": "x" * number}]})
               for number in range(12)]
    return write_shards(samples, tmp_path / "d", samples_per_shard=4)


def lengths(index):
    return np.asarray(text_lengths(index, PROMPT_PART, TOKENIZER_PART))


def shard_files(index):
    return [sidecar(index.folder / str(shard["name"]), f"lengths-{counter(PROMPT_PART, TOKENIZER_PART)}.npz")
            for shard in index.shards]


def test_a_longer_answer_is_so_much_longer(index):
    assert np.diff(lengths(index)).tolist() == [1] * 11


def test_counting_goes_on_with_the_shards_that_were_not_counted(index, monkeypatch):
    whole, path = lengths(index), joined_path(index, counter(PROMPT_PART, TOKENIZER_PART))
    path.unlink()
    shard_files(index)[1].unlink()
    counted = []
    count = module._count
    monkeypatch.setattr(module, "_count", lambda task: counted.append(task.number) or count(task))
    assert lengths(index).tolist() == whole.tolist() and counted == [1] and path.is_file()


def test_counts_of_other_bytes_are_not_used(index):
    whole = lengths(index)
    joined_path(index, counter(PROMPT_PART, TOKENIZER_PART)).unlink()
    tar = index.folder / "000001.tar"
    write_lengths(tar, "0" * 64, counter(PROMPT_PART, TOKENIZER_PART), np.zeros(4))
    shard_files(index)[2].write_bytes(b"cut")
    assert lengths(index).tolist() == whole.tolist()


def test_whoever_writes_shards_may_count_them(index):
    for shard in index.shards:
        write_lengths(index.folder / str(shard["name"]), str(shard["sha256"]), counter(PROMPT_PART, TOKENIZER_PART),
                      np.full(4, 9))
    assert lengths(load_index(index.folder)).tolist() == [9] * 12


class Deadly(type(TOKENIZER_PART)):
    """Ends the process that copies it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_while_counting_is_told_by_what_it_died_of(index, monkeypatch):
    monkeypatch.setattr(module, "PARALLEL_SAMPLES", 1)
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    with pytest.raises(AuroraError, match="ended with status 3"):
        text_lengths(index, PROMPT_PART, Deadly())


def test_many_processes_count_the_same(index, monkeypatch):
    serial = lengths(index)
    for path in [*shard_files(index), joined_path(index, counter(PROMPT_PART, TOKENIZER_PART))]:
        path.unlink()
    monkeypatch.setattr(module, "PARALLEL_SAMPLES", 1)
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert lengths(index).tolist() == serial.tolist() and all(path.is_file() for path in shard_files(index))
