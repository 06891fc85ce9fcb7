"""Every sample exactly as often as it should be read, on any layout, whatever is killed; no damaged shard unnoticed."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from aurora.errors import AuroraError, BadSample
from aurora.steps import START
from datamodules.loading import supervisor
from datamodules.shards import index
from datamodules.shards.format import ShardSample
from datamodules.shards.index import load_index
from datamodules.shards.tar import ShardFiles
from datamodules.shards.writing import shard_path
from tools.tiny_shards import write_shards

pytestmark = pytest.mark.process

MIXTURE = {"once": 1, "thrice": 3}
LAYOUTS = [(1, 1, 0), (1, 2, 2), (2, 2, 3), (3, 1, 1)]  # nodes, ranks of each, workers of each


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    # nothing is decoded here; spawning takes seconds
    monkeypatch.setattr(supervisor, "start_method", lambda: "fork")


@pytest.fixture(scope="module")
def root(make, tmp_path_factory):
    """Two datasets of texts, 90 visits per epoch."""
    root = Path(tmp_path_factory.mktemp("once"))
    write_shards(make.mixed(60, ("text",)), root / "once", samples_per_shard=17)
    write_shards(make.mixed(10, ("text",), 100), root / "thrice", samples_per_shard=4)
    return root


@pytest.fixture(scope="module")
def whole(make, root):
    return steps([turn for rank in ranks(make, root, (1, 1, 0)) for turn in rank])


def rows(make, root, rank, world, workers, done=()):
    """(ids, closes, position) of every row of a rank behind those that are done."""
    module = make.module(root, MIXTURE, layout=None, workers=workers, epochs=2)
    steps = module.total_steps() - sum(closes for _, closes, _ in done)
    position = done[-1][2] if done else START
    return ((make.answers(batch), batch.closes_step, batch.position)
            for batch in module.rows(position, steps=steps, rank=rank, world=world))


def ranks(make, root, layout, done=()):
    nodes, each, workers = layout
    return [list(rows(make, root, rank, nodes * each, workers, done)) for rank in range(nodes * each)]


def joined(found):
    """The micro-steps of all ranks: (ids of every rank's row, closes, position)."""
    turns = list(zip(*found, strict=True))
    assert all(len({turn[1:] for turn in of_all}) == 1 for of_all in turns)
    return [([ids for ids, _, _ in of_all if ids], *of_all[0][1:]) for of_all in turns]


def steps(turns):
    """The rows of every step that was finished, in order."""
    done, current = [], []
    for ids, closes, _ in turns:
        current += ids if ids and isinstance(ids[0], list) else [ids]
        if closes:
            done.append(current)
            current = []
    return done


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_sample_is_read_exactly_as_often_as_it_should(make, root, whole, layout):
    found = steps(joined(ranks(make, root, layout)))
    assert found == whole
    assert Counter(itertools.chain(*itertools.chain(*found))) == {
        **{str(number): 2 for number in range(60)}, **{str(number): 6 for number in range(100, 110)}}


def test_a_run_that_is_cut_anywhere_goes_on_on_any_layout_with_the_same_samples(make, root, whole):
    draw = random.Random(0)
    worlds = {world: joined(ranks(make, root, (1, world, 0))) for world in (1, 2, 3, 4)}
    for _ in range(50):
        before, after = draw.choice(list(worlds)), draw.choice(list(worlds))
        cut = draw.randrange(1, len(worlds[before]))
        done = worlds[before][:cut]
        rest = joined(ranks(make, root, (1, after, 0), done))
        assert steps(done) + steps(rest) == whole


def train(found, tell):
    """A rank that tells of every row that it has finished."""
    for turn in found:
        tell.send(turn)
        time.sleep(0.002)


@pytest.mark.parametrize(("layout", "cut", "resumed"), [
    ((1, 1, 2), 3, (1, 2, 0)), ((1, 1, 1), 8, (3, 1, 1)), ((1, 1, 3), 13, (1, 1, 2))], ids=str)
def test_a_run_whose_processes_are_killed_goes_on_with_the_same_samples(make, root, whole, layout, cut, resumed):
    reported, tell = multiprocessing.Pipe(duplex=False)
    main = multiprocessing.get_context("fork").Process(target=train, args=(rows(make, root, 0, 1, layout[2]), tell))
    main.start()
    done = [reported.recv() for _ in range(cut)]
    main.kill()
    main.join()
    tell.close()
    with pytest.raises(EOFError):
        # what it finished before the signal reached it; the workers that held the pipe open die as well
        while True:
            done.append(reported.recv())
    reported.close()
    main.close()
    assert steps(done) + steps(joined(ranks(make, root, resumed, done))) == whole


def test_workers_that_are_killed_while_they_wait_cost_nothing(make, root, whole):
    found = []
    for number, turn in enumerate(rows(make, root, 0, 1, 2)):
        found.append(turn)
        if number % 7 == 0:
            time.sleep(0.1)  # until both have built ahead what they may
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
    assert steps(found) == whole


@pytest.fixture
def small(tmp_path):
    """A shard of two samples, and all that is read of it."""
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    samples = [ShardSample(key, {"conversations": turns, "image": "jpg"}, {"jpg": key.encode() * 300})
               for key in ("a", "b")]
    return write_shards(samples, tmp_path / "d")


def contents(dataset, *, verify):
    files = ShardFiles(verify=verify)
    try:
        return [(files.record(dataset, sample), files.media(dataset, sample, 0, f"{key}.jpg"))
                for sample, key in enumerate("ab")]
    finally:
        files.close()


def flips(tar):
    """Every byte of a file in turn, changed; its place."""
    data = tar.read_bytes()
    with tar.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            os.pwrite(file.fileno(), bytes([byte ^ 0x10]), place)
            yield place
            os.pwrite(file.fileno(), bytes([byte]), place)


def test_a_shard_that_was_cut_anywhere_stops_the_run_before_it_starts(small, monkeypatch):
    monkeypatch.setattr(index, "open_index", lambda folder: small)  # the same every time, and slow to read
    tar = shard_path(small.folder, 0)
    for size in reversed(range(tar.stat().st_size)):
        os.truncate(tar, size)
        with pytest.raises(AuroraError, match="it was cut or changed"):
            load_index(small.folder)


def test_any_byte_that_changed_is_found_where_shards_are_verified(small):
    whole = contents(small, verify=True)
    for _ in flips(shard_path(small.folder, 0)):
        with pytest.raises(BadSample, match="sha256"):
            contents(small, verify=True)
    assert contents(small, verify=True) == whole


def test_without_verifying_only_bytes_within_a_member_can_change_unnoticed(small):
    whole, unnoticed = contents(small, verify=False), []
    for place in flips(shard_path(small.folder, 0)):
        try:
            if contents(small, verify=False) != whole:
                unnoticed.append(place)
        except BadSample as error:
            assert error.reason == "shard"
    inside = [range(int(row["offset"]), int(row["offset"]) + int(row["size"]))
              for rows in (small.samples, small.media) for row in rows]
    assert unnoticed == sorted(itertools.chain(*inside))
