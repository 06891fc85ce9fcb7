"""Building shards: 4,000 records with a JPEG each become 16 tars, copied or made smaller.

Ours also plans, measures every picture, hashes every tar and writes an index and manifests; all of that is timed, and
so is the start of its processes.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora.bench.case import Case, Contestant, Settings
from aurora.bench.ceilings import Cost
from aurora.bench.timing import Work
from aurora.registry import EXECUTOR, import_part

WORKERS = 2
SHORT_SIDE, QUALITY = 384, 90
# Ours decodes a JPEG at a fraction of its size where that is enough, so pictures differ by rounding.
TOLERANCE = {"copied": 1e-6, "made smaller": 1e-2}


class Size(NamedTuple):
    """Records, and the pictures that they name."""

    records: int
    shards: int
    width: int
    height: int


FULL, QUICK = Size(4000, 16, 640, 480), Size(64, 2, 64, 48)


def cases(settings: Settings) -> list[Case]:
    """Copying and making smaller."""
    size = QUICK if settings.quick else FULL
    return [
        Case(f"{size.records} records with pictures of {size.width}×{size.height} to {size.shards} tars, {how}",
             [Contestant(name, partial(_work, settings, size, how, write), files=partial(_input, settings, size))
              for name, write in (("aurora, 2 processes", _aurora), ("webdataset.ShardWriter", _plain),
                                  ("webdataset.ShardWriter, pool of 2", _pooled))],
             Cost(0.0, 2.0 * _bytes(settings, size)), TOLERANCE[how], items=size.records, unit="records")
        for how in TOLERANCE]


def _work(settings: Settings, size: Size, how: str, write: Callable[[Path, Path, int, bool], object]) -> Work:
    folder, output = _input(settings, size), settings.folder / f"shards-{write.__name__}"
    checked = False

    def work() -> Tensor:
        nonlocal checked
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        write(folder, output, size.records // size.shards, how == "made smaller")
        # What was written is looked at once, and not timed again.
        found = torch.empty(0) if checked else _contents(output)
        checked = True
        return found

    return work


def _aurora(folder: Path, output: Path, each: int, smaller: bool) -> None:
    plans, builds = import_part("datamodules._build_plan"), import_part("datamodules._build")
    transcode = import_part("datamodules._build_media").Transcode(SHORT_SIDE, QUALITY) if smaller else None
    order = plans.Order(folder=str(folder), source={"name": "llava", "annotations": "a.jsonl"}, transcode=transcode,
                        samples_per_shard=each)
    plan = plans.make_plan(order, output)
    executor = EXECUTOR.build({"name": "process", "workers": WORKERS})
    list(builds.run_tasks(builds.build_tasks(output, plan), executor, entries=plan.entries, max_bad_rate=0.0))
    builds.join(output, plan)


def _plain(folder: Path, output: Path, each: int, smaller: bool) -> None:
    _write(output, (_sample(folder, smaller, record) for record in _records(folder)), each)


def _pooled(folder: Path, output: Path, each: int, smaller: bool) -> None:
    # The same start of processes as ours.
    with multiprocessing.get_context("forkserver").Pool(WORKERS) as pool:
        _write(output, pool.imap(partial(_sample, folder, smaller), _records(folder), chunksize=32), each)


def _write(output: Path, samples: Iterable[dict[str, Any]], each: int) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{output}/%06d.tar", maxcount=each, maxsize=1 << 40, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)


def _sample(folder: Path, smaller: bool, record: dict[str, Any]) -> dict[str, Any]:
    """A sample as webdataset takes it."""
    raw = folder.joinpath(record["image"]).read_bytes()
    told = {**record, "image": "jpg"}
    return {"__key__": f"{record['id']:09d}", "jpg": _smaller(raw) if smaller else raw, "json": told}


def _smaller(raw: bytes) -> bytes:
    """What whoever writes such a loop would do."""
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    scale = min(1.0, SHORT_SIDE / min(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    with folder.joinpath("a.jsonl").open() as file:
        yield from map(json.loads, file)


def _contents(output: Path) -> Tensor:
    """How many samples the tars hold, how much text, and the brightness of some pictures."""
    samples, text, brightness = 0, 0, []
    for tar in sorted(output.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                if member.name.endswith(".json"):
                    samples += 1
                    text += len(json.load(file)["conversations"][1]["value"])
                elif int(member.name.partition(".")[0]) % 40 == 0:
                    brightness.append(float(np.asarray(Image.open(file)).mean()))
    return torch.tensor([samples, text, *brightness], dtype=torch.float64)


def _input(settings: Settings, size: Size) -> Path:
    """Records and pictures that cost what photographs cost: 16 different ones under many names."""
    folder = settings.folder / f"records-{size.records}-{size.width}x{size.height}"
    if folder.joinpath("a.jsonl").is_file():
        return folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = [_picture(rng, size) for _ in range(16)]
    for number in range(size.records):
        folder.joinpath(f"{number}.jpg").write_bytes(pictures[number % len(pictures)])
    folder.joinpath("a.jsonl").write_text("".join(json.dumps(
        {"id": number, "image": f"{number}.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat is shown here?"},
            {"from": "gpt", "value": f"Record {number}. " + "A sentence of a caption. " * 20}]}) + "\n"
        for number in range(size.records)))
    return folder


def _picture(rng: np.random.Generator, size: Size) -> bytes:
    """Noise at several scales, as in photographs."""
    pixels = np.zeros((size.height, size.width, 3))
    for cell in (64, 16, 4, 1):
        coarse = rng.uniform(0, 255, (-(-size.height // cell), -(-size.width // cell), 3)).astype(np.uint8)
        whole = Image.fromarray(coarse).resize((size.width, size.height), Image.Resampling.BICUBIC)
        pixels += np.asarray(whole) * (0.02 if cell == 1 else 0.98 / 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _bytes(settings: Settings, size: Size) -> int:
    """Of the pictures."""
    return sum(path.stat().st_size for path in _input(settings, size).glob("*.jpg"))
