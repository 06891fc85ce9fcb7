"""Workers that really crash, hang and grow: what is left of the rows, and of the processes."""

import ctypes
import faulthandler
import json
import multiprocessing
import os
import pickle
import re
import signal
import time
from itertools import chain
from pathlib import Path

import fsspec.asyn
import numpy as np
import pytest
import torch

from aurora.errors import AuroraError
from aurora.interfaces import VideoReader
from aurora.steps import START
from aurora.types import IGNORE
from datamodules.loading import supervisor
from datamodules.loading.supervisor import start_method
from datamodules.plan.epoch import EpochPlan
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards

pytestmark = pytest.mark.process


class Trapped(VideoReader):
    """Four grey frames of every file, unless the file's bytes name a way to fail."""

    def __init__(self, log, scratch):
        self.log, self.scratch = log, scratch

    def first_time(self, word):
        """Whether no worker was there before."""
        try:
            (self.scratch / word).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def times(self, source, sampling):
        return [0.0, 1.0, 2.0, 3.0]

    def read(self, source, sampling):
        if self.log:
            with self.log.open("ab") as file:
                file.write(b".")
        word = source[-8:].strip().decode("ascii", "replace")
        if word == "crash":
            faulthandler.disable()  # it would tell what is meant to happen
            ctypes.string_at(0)
        if word == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if word in ("unlucky", "stopped") and self.first_time(word):
            os.kill(os.getpid(), signal.SIGKILL if word == "unlucky" else signal.SIGSTOP)
        if word == "hang":
            # with the lock of the interpreter held, so that nothing inside of the process could end it
            ctypes.PyDLL(None).sleep(1000)
        if word == "leak":
            LEAKED.append(np.ones(40 << 20, np.uint8))  # too large for what an earlier test has freed
        if word == "quit":
            os._exit(7)
        for second in range(sampling.max_frames or 4):
            yield float(second), np.full((48, 64, 3), 8 * second, np.uint8)


LEAKED = []


@pytest.fixture(autouse=True)
def quick_workers(monkeypatch):
    # No video was decoded with threads here that a forked worker could miss; spawning takes seconds.
    monkeypatch.setattr(supervisor, "start_method", lambda: "fork")


@pytest.fixture(autouse=True)
def nothing_left():
    """No process and no descriptor outlives a test."""
    files = len(os.listdir("/proc/self/fd"))
    yield
    assert multiprocessing.active_children() == []
    # multiprocessing keeps what it shared numbers in, opened twice
    assert len(os.listdir("/proc/self/fd")) <= files + 2


@pytest.fixture
def build(make, tmp_path):
    """A module over 24 videos; `faults` says by number which file is a trap of which kind."""

    def build(faults, log=None, **options):
        def one(number):
            media = make.video(4, 1) + b" " * 8
            record = {"conversations": make.talk(number, "<video>\n"), "video": "mp4"}
            fault = faults.get(number, "").rjust(8).encode()
            return ShardSample(f"v/{number:03d}", record, {"mp4": media[:-8] + fault})

        write_shards([one(number) for number in range(24)], tmp_path / "d", samples_per_shard=10)
        options = {"fps": 1.0, "workers": 2, "max_bad_rate": 1.0, "quarantine": str(tmp_path / "q.jsonl"), **options}
        module = make.module(tmp_path, {"d": 1}, **options)
        module._reader = Trapped(log, tmp_path)
        return module

    return build


def all_rows(module):
    return module.rows(START, steps=module.total_steps(), rank=0, world=1)


def same(found, wanted):
    return all(torch.equal(one, other) for one, other in zip(
        [found.tokens, found.targets, *found.frames[0][:2]], [wanted.tokens, wanted.targets, *wanted.frames[0][:2]],
        strict=True)) and found.frames[0][2:] == wanted.frames[0][2:] and found[4:] == wanted[4:]


def test_workers_build_the_rows_of_the_main_process(build):
    wanted = list(chain.from_iterable(build({}, workers=0).train_dataloader()))
    found = list(chain.from_iterable(build({}, workers=3).train_dataloader()))
    assert len(found) == len(wanted) and all(map(same, found, wanted))


def test_crashes_and_hangs_cost_their_samples_and_nothing_else(build, make, tmp_path):
    faults = {3: "crash", 7: "killed", 12: "hang", 13: "crash", 20: "quit"}
    wanted = list(chain.from_iterable(build({}, workers=0).train_dataloader()))
    module = build(faults, sample_seconds=1.0)
    found = list(chain.from_iterable(module.train_dataloader()))
    assert [(len(batch.tokens), *batch[5:]) for batch in found] == [(len(batch.tokens), *batch[5:]) for batch in wanted]
    bad = [str(number) for number in faults]
    for batch, whole in zip(found, wanted, strict=True):
        assert make.answers(batch) == [answer for answer in make.answers(whole) if answer not in bad]
        learned = batch.targets != IGNORE
        assert torch.equal(batch.targets[learned], whole.targets[learned])
    listed = {entry.pop("key"): entry for entry in map(json.loads, Path(tmp_path / "q.jsonl").read_text().splitlines())}
    assert listed.keys() == {f"v/{number:03d}" for number in faults}
    assert listed["v/012"] == {"dataset": "d", "shard": "000001.tar", "reason": "hang",
                               "detail": "not decoded after 1 s"}
    assert listed["v/003"]["detail"].endswith("SIGSEGV") and listed["v/007"]["detail"].endswith("SIGKILL")
    assert listed["v/020"]["detail"].endswith("status 7")
    assert module.bad.reasons == {"crash": 4, "hang": 1}


@pytest.mark.parametrize(("fault", "why"), [("unlucky", "ended with SIGKILL"), ("stopped", "not decoded after 1 s")])
def test_a_worker_that_dies_or_hangs_once_costs_no_sample_and_is_counted_and_told(build, caplog, fault, why):
    wanted = list(chain.from_iterable(build({}, workers=0).train_dataloader()))
    module = build({7: fault}, sample_seconds=1.0)
    found = list(chain.from_iterable(module.train_dataloader()))
    assert len(found) == len(wanted) and all(map(same, found, wanted))
    assert module.worker_deaths == 1 and module.bad.reasons == {}
    assert re.search(f"is started again, and a sample tried once more .*{why}", caplog.text)


def test_a_worker_that_stops_while_it_waits_is_replaced(build, caplog, tmp_path):
    wanted = list(chain.from_iterable(build({}, workers=0, row_frames=4).train_dataloader()))
    module = build({}, sample_seconds=0.5, row_frames=4, log=tmp_path / "log")
    rows = iter(chain.from_iterable(module.train_dataloader()))
    found = [next(rows)]
    while len((tmp_path / "log").read_bytes()) < 5:  # what both may build ahead
        time.sleep(0.01)
    time.sleep(0.2)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGSTOP)
    found += rows
    assert all(map(same, found, wanted)) and module.worker_deaths == 2
    assert caplog.text.count("hung without a sample in hand and is started again") == 2


def test_what_a_spawned_worker_is_given_does_not_grow_with_the_samples(build):
    task = build({}).task(START, steps=1, rank=0, world=1)
    assert task.plan.samples == 24  # is there, and stays here
    assert "plan" not in pickle.loads(pickle.dumps(task)).__dict__


def test_a_worker_that_grows_is_renewed_between_rows(build, caplog):
    caplog.set_level("INFO", "datamodules")
    wanted = list(chain.from_iterable(build({}, workers=0).train_dataloader()))
    found = list(chain.from_iterable(build(dict.fromkeys(range(24), "leak"), worker_bytes=20 << 20).train_dataloader()))
    assert all(map(same, found, wanted)) and "is renewed" in caplog.text


def test_a_worker_that_dies_without_a_sample_in_hand_stops_the_run(build, monkeypatch):
    module = build({})
    monkeypatch.setattr(EpochPlan, "window", lambda plan, epoch, window: os._exit(7))
    with pytest.raises(AuroraError, match=r"ended 3 times in a row without .*the last time with status 7"):
        list(chain.from_iterable(module.train_dataloader()))


def test_an_error_in_a_worker_is_told_as_it_is(build):
    module = build({}, workers=1)
    module._reader.read = None
    with pytest.raises(AuroraError, match=r"a worker failed:(.|\n)*not callable"):
        list(chain.from_iterable(module.train_dataloader()))


def test_rows_lie_in_memory_without_a_name(build):
    rows = all_rows(build({}))
    row = next(rows)
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    named = [line[5] for line in maps for first, last in [line[0].split("-")]
             if int(first, 16) <= row.frames[0].pixels.data_ptr() < int(last, 16)]
    assert named == ["/memfd:row (deleted)"]
    rows.close()


def test_an_iteration_may_end_early(build):
    rows = all_rows(build({12: "hang"}))
    next(rows)
    assert len(multiprocessing.active_children()) == 2
    rows.close()
    assert multiprocessing.active_children() == []


def test_an_iteration_that_nobody_holds_ends(build):
    for _ in zip(chain.from_iterable(build({}).train_dataloader()), range(2), strict=False):
        pass
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("options", "ready"), [({"prefetch_rows": 3}, 3),
                                                ({"prefetch_rows": 9, "prefetch_bytes": 1}, 1)])
def test_what_is_kept_ready_is_bounded_in_rows_and_bytes(build, tmp_path, options, ready):
    # four frames to a row and to a video, so that rows are counted by videos
    rows = all_rows(build({}, workers=1, row_frames=4, log=tmp_path / "log", **options))
    next(rows)
    time.sleep(0.5)
    assert len((tmp_path / "log").read_bytes()) == 1 + ready
    rows.close()


def endless(module, tell):
    """What a training that is killed does."""
    rows = iter(chain.from_iterable(module.train_dataloader()))
    next(rows)
    tell.send([worker.pid for worker in multiprocessing.active_children()])
    list(rows)


def gone(pid):
    """Whether a process has ended; nobody may be there to take note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_workers_do_not_outlive_a_killed_main_process(build, make):
    reported, tell = multiprocessing.Pipe()
    *_, last = chain.from_iterable(build({}, workers=0).train_dataloader())
    module = build({int(make.answers(last)[0]): "hang"})
    main = multiprocessing.get_context("fork").Process(target=endless, args=(module, tell))
    main.start()
    workers = reported.recv()
    assert len(workers) == 2
    main.kill()
    main.join()
    deadline = time.monotonic() + 10
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, workers))
    main.close()
    reported.close()
    tell.close()


def test_workers_start_by_spawning_once_this_process_has_decoded_or_read_from_a_server(monkeypatch):
    monkeypatch.setattr(fsspec.asyn, "iothread", [None])
    monkeypatch.setattr(supervisor, "decoded_here", lambda: False)
    assert start_method() == "fork"
    monkeypatch.setattr(fsspec.asyn, "iothread", [object()])
    assert start_method() == "spawn"
    monkeypatch.setattr(fsspec.asyn, "iothread", [None])
    monkeypatch.setattr(supervisor, "decoded_here", lambda: True)
    assert start_method() == "spawn"
