"""Loader workers that are killed or stopped at random moments while a whole run is trained."""

import io
import os
import random
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aurora.training.callbacks.csv_logger import read_metrics
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards
from tools.tiny_training import curve, start, start_ranks, tiny_config

SAMPLES, EPOCHS = 24, 4
APART = 8  # rows between two signals to a run's workers: all of them have built some of them


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Pictures that take longer to read than to learn from, each with a question."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_shards([sample(number, generator) for number in range(SAMPLES)], root / "pictures")
    return root


def sample(number, generator):
    pixels = io.BytesIO()
    Image.fromarray(generator.integers(256, size=(500, 500, 3), dtype=np.uint8)).save(pixels, "png", compress_level=1)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"noise {number}"}]
    return ShardSample(f"{number:04d}", {"image": "png", "conversations": turns}, {"png": pixels.getvalue()})


class Run:
    """Training in processes of its own, with two workers each and one sample to a row."""

    def __init__(self, folder, shards, world):
        folder.mkdir()
        config = {**tiny_config(folder / "run"), "stage": "first"}
        config["data"] = {"name": "webdataset", "root": str(shards), "row_tokens": 100, "row_frames": 1, "frames": 1,
                          "workers": 2, "sample_seconds": 2.0}
        config["stages"]["first"].update(mixture={"pictures": 1}, global_batch=4, epochs=EPOCHS)
        config["trainer"].update(strategy="auto" if world == 1 else "ddp", checkpoint_every=1000)
        self.folder, self.rows = folder, SAMPLES * EPOCHS // world
        reported = {"ROW_LOG": str(folder / "rows"), "SET": "datamodules.loading.supervisor.START_SECONDS=2"}
        self.processes = ([start(config, folder / "said-0", **reported)] if world == 1 else
                          start_ranks(config, folder / "said", world, **reported))

    def read(self, rank):
        """The rows that a process was given, one by one."""
        path = Path(f"{self.folder / 'rows'}-{self.processes[rank].pid}")
        return path.read_text().splitlines() if path.exists() else []

    def said(self, rank):
        return (self.folder / f"said-{rank}").read_text()

    def disturb(self, number, most, draw):
        """Sends a signal to at most so many workers of each process at random moments. How many each has lost."""
        lost, due = [0 for _ in self.processes], [0 for _ in self.processes]
        while any(process.is_alive() for process in self.processes):
            for rank, process in enumerate(self.processes):
                if lost[rank] < most and len(self.read(rank)) >= due[rank]:
                    time.sleep(draw.uniform(0, 0.05))
                    with suppress(ProcessLookupError), stopped(process.pid):
                        read, workers = len(self.read(rank)), children(process.pid)
                        if workers and read < self.rows - APART:  # so that all of them have rows to build
                            os.kill(draw.choice(workers), number)
                            lost[rank], due[rank] = lost[rank] + 1, read + APART
            time.sleep(0.002)
        self.finish()
        return lost

    def finish(self):
        for process in self.processes:
            process.join(60)
        assert [process.exitcode for process in self.processes] == [0 for _ in self.processes], self.said(0)


@contextmanager
def stopped(pid):
    """Lets a process do nothing for the while; ProcessLookupError when it has ended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """By the number of processes."""
    runs = {world: Run(tmp_path_factory.mktemp("runs") / str(world), shards, world) for world in (1, 2)}
    for run in runs.values():
        run.finish()
    return runs


@pytest.mark.parametrize(("number", "most", "world"), [(signal.SIGKILL, 5, 1), (signal.SIGKILL, 5, 2),
                                                       (signal.SIGSTOP, 1, 1)])
def test_workers_that_are_killed_or_stop_change_nothing_and_are_counted_and_told(
    number, most, world, shards, undisturbed, tmp_path
):
    run, whole = Run(tmp_path / "disturbed", shards, world), undisturbed[world]
    lost = run.disturb(number, most, random.Random(1))
    assert min(lost) >= min(most, 2)
    assert curve(run.folder / "run", "first") == curve(whole.folder / "run", "first")
    for rank in range(world):
        assert len(run.read(rank)) == run.rows and run.read(rank) == whole.read(rank)
        assert run.said(rank).count("is started again") == lost[rank]
    assert float(read_metrics(run.folder / "run" / "first")[-1]["worker_deaths"]) == lost[0]
