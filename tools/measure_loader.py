"""What the loader of `data=webdataset` costs while a model trains: the wait for rows, and the memory of its workers.

    python tools/measure_loader.py wait       # share of a step's time spent waiting, the step slower than decoding
    python tools/measure_loader.py memory     # private memory of 8 workers over 100,000 small samples

One line of JSON; nothing is left behind.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aurora.images import ImagePreparation
from aurora.interfaces import VisualLayout
from aurora.registry import DATA, MERGE, PROMPT, READER, TOKENIZER
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards

SIDE = 64
WARM = 4  # of twenty looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("wait", "memory"))
    parser.add_argument("--samples", type=int, default=None, help="(default 2,000 and 100,000)")
    parser.add_argument("--workers", type=int, default=None, help="(default 2 and 8)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "wait":
            found = wait(Path(folder), options.samples or 2_000, options.workers or 2)
        else:
            found = memory(Path(folder), options.samples or 100_000, options.workers or 8)
    print(json.dumps(found))


def wait(root: Path, samples: int, workers: int) -> dict[str, float]:
    """Sleeps twice as long per row as building one takes with these workers."""
    rows = iter(chain.from_iterable(module(root, samples, workers).train_dataloader()))
    next(rows)
    start = time.perf_counter()
    built = sum(1 for _ in zip(range(20), rows, strict=False))
    pause = 2 * (time.perf_counter() - start) / built
    time.sleep(4 * pause)  # until rows are ready, as they are after the first steps
    waits, took = [], time.perf_counter()
    last = took
    for _ in rows:
        waits.append(time.perf_counter() - last)
        time.sleep(pause)
        last = time.perf_counter()
    return {"rows": len(waits), "step_seconds": pause, "waited": sum(waits) / (time.perf_counter() - took),
            "median_wait_seconds": statistics.median(waits), "longest": max(waits)}


def memory(root: Path, samples: int, workers: int) -> dict[str, Any]:
    """Megabytes that all workers have of their own, after a quarter of the rows, when a second window has been planned,
    and at the end."""
    data, start = module(root, samples, workers), time.perf_counter()
    total = data.plan.samples
    seen, course = 0, []
    for row in chain.from_iterable(data.train_dataloader()):
        before, seen = seen, seen + row.samples
        if before * 20 // total != seen * 20 // total:
            pids = [worker.pid for worker in multiprocessing.active_children() if worker.pid]
            # those that have built their last row are gone
            if len(pids) == workers:
                course.append(sum(map(private, pids)) / 1e6)
    return {"samples": seen, "seconds": time.perf_counter() - start, "warm": course[WARM], "end": course[-1],
            "growth": course[-1] / course[WARM] - 1, "course": [round(size, 1) for size in course]}


def private(pid: int) -> int:
    """Bytes that are this process's alone."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return 1024 * sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def module(root: Path, count: int, workers: int):  # noqa: ANN201
    """Small pictures with a question each."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, SIDE, SIDE, 3), np.uint8)
    media = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG")
        media.append(buffer.getvalue())
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise. " * 9}]
    write_shards(
        (ShardSample(f"{number:08d}", {"conversations": turns, "image": "jpg"},
                             {"jpg": media[number % len(media)]}) for number in range(count)),
        root / "d", samples_per_shard=5_000)
    layout = VisualLayout(ImagePreparation(size=SIDE, patch_size=16), MERGE.build({"name": "tome"}), 4, 0.5)
    return DATA.build(
        {"name": "webdataset", "root": str(root), "row_tokens": 4096, "row_frames": 32, "frames": 1,
         "workers": workers}, mixture={"d": 1}, global_batch=256, tokenizer=TOKENIZER.build({"name": "bytes"}), seed=0,
        prompt=PROMPT.build({"name": "sandwich"}), layout=layout, reader=READER.build({"name": "pyav"}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
