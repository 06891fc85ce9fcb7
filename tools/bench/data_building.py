"""Building shards: 4,000 records with a JPEG each become 16 tars, copied or made smaller, and 32 videos 4 tars.

Ours also plans, measures every medium, hashes every tar and writes an index and manifests; all of that is timed, and
so is the start of its processes.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora.registry import EXECUTOR
from datamodules.build import build, plan
from datamodules.build.media import Transcode
from tools.bench.case import Case, Contestant, Settings
from tools.bench.data_decoding import Size, video_file
from tools.bench.machine import Cost
from tools.bench.timing import Work

WORKERS = 2
SHORT_SIDE, QUALITY, FPS = 384, 90, 2
# Ours decodes a JPEG at a fraction of its size where that is enough, so pictures differ by rounding.
COPIED, SMALLER = 1e-6, 1e-2


class Job(NamedTuple):
    """Records that name one medium each, and what is done to these."""

    records: int
    shards: int
    medium: str  # image | video
    width: int
    height: int
    smaller: bool

    @property
    def extension(self) -> str:
        return "jpg" if self.medium == "image" else "mp4"

    def __str__(self) -> str:
        what = "pictures" if self.medium == "image" else "videos"
        how = "made smaller" if self.smaller else "copied"
        return f"{self.records} records with {what} of {self.width}×{self.height} to {self.shards} tars, {how}"


FULL = (Job(4000, 16, "image", 640, 480, False), Job(4000, 16, "image", 640, 480, True),
        Job(32, 4, "video", 1280, 720, True))
QUICK = (Job(64, 2, "image", 64, 48, False), Job(64, 2, "image", 64, 48, True), Job(4, 2, "video", 320, 180, True))
VIDEO, QUICK_VIDEO = Size(5, 2, 720, 1280), Size(2, 2, 180, 320)


def data(settings: Settings) -> list[Case]:
    """Copying pictures, making them smaller, and videos."""
    return [
        Case(str(job),
             [Contestant(name, partial(_work, settings, job, write), files=partial(_input, settings, job))
              for name, write in (("aurora, 2 processes", _aurora), ("webdataset.ShardWriter", _plain),
                                  ("webdataset.ShardWriter, pool of 2", _pooled))],
             Cost(0.0, 2.0 * _bytes(settings, job)), SMALLER if job.smaller else COPIED, items=job.records,
             unit="records")
        for job in (QUICK if settings.quick else FULL)]


def _work(settings: Settings, job: Job, write: Callable[[Job, Path, Path], object]) -> Work:
    folder, output = _input(settings, job), settings.folder / f"shards-{write.__name__}"
    checked = False

    def work() -> Tensor:
        nonlocal checked
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        write(job, folder, output)
        # What was written is looked at once, and not timed again.
        found = torch.empty(0) if checked else _contents(output)
        checked = True
        return found

    return work


def _aurora(job: Job, folder: Path, output: Path) -> None:
    transcode = Transcode(SHORT_SIDE, QUALITY, FPS) if job.smaller else None
    order = plan.BuildOrder(folder=str(folder), source={"name": "llava", "annotations": "a.jsonl"}, transcode=transcode,
                            samples_per_shard=job.records // job.shards)
    planned = plan.make_plan(order, output)
    executor = EXECUTOR.build({"name": "process", "workers": WORKERS})
    list(build.run_tasks(build.build_tasks(output, planned), executor, entries=planned.entries, max_bad_rate=0.0))
    build.join(output, planned)


def _plain(job: Job, folder: Path, output: Path) -> None:
    _write(job, output, (_sample(job, folder, record) for record in _records(folder)))


def _pooled(job: Job, folder: Path, output: Path) -> None:
    # The same start of processes as ours.
    with multiprocessing.get_context("forkserver").Pool(WORKERS) as pool:
        _write(job, output, pool.imap(partial(_sample, job, folder), _records(folder),
                                      chunksize=max(1, min(32, job.records // (4 * WORKERS)))))


def _write(job: Job, output: Path, samples: Iterable[dict[str, Any]]) -> None:
    import webdataset

    each = job.records // job.shards
    with webdataset.ShardWriter(f"{output}/%06d.tar", maxcount=each, maxsize=1 << 40, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)


def _sample(job: Job, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A sample as webdataset takes it."""
    raw = folder.joinpath(record[job.medium]).read_bytes()
    if job.smaller:
        raw = _small_picture(raw) if job.medium == "image" else _small_video(raw)
    reported = {**record, job.medium: job.extension}
    return {"__key__": f"{record['id']:09d}", job.extension: raw, "json": reported}


def _small_picture(raw: bytes) -> bytes:
    """What whoever writes such a loop would do."""
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    scale = min(1.0, SHORT_SIDE / min(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _small_video(raw: bytes) -> bytes:
    """The same for videos, with what ours asks of x264."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(raw)) as source, av.open(buffer, "w", format="mp4") as container:
        stream, number = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast"}), 0
        stream.codec_context.thread_count = 1
        for frame in source.decode(video=0):
            if frame.time < number / FPS:
                continue
            if not number:
                scale = min(1.0, SHORT_SIDE / min(frame.width, frame.height))
                stream.width, stream.height = (round(side * scale / 2) * 2 for side in (frame.width, frame.height))
            small = frame.reformat(stream.width, stream.height, "yuv420p")
            small.pts, small.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(small))
            number += 1
        container.mux(stream.encode(None))
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
                stem, _, extension = member.name.partition(".")
                if extension == "json":
                    samples += 1
                    text += len(json.load(file)["conversations"][1]["value"])
                elif extension == "mp4":
                    with av.open(file) as video:
                        frames = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
                        brightness += [float(pixels.mean()) for pixels in frames]
                elif int(stem) % 40 == 0:
                    brightness.append(float(np.asarray(Image.open(file)).mean()))
    return torch.tensor([samples, text, *brightness], dtype=torch.float64)


def _input(settings: Settings, job: Job) -> Path:
    """Records and media that cost what real ones cost: few different ones under many names."""
    folder = settings.folder / f"records-{job.records}-{job.width}x{job.height}"
    if folder.joinpath("a.jsonl").is_file():
        return folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    media = ([_picture(rng, job) for _ in range(16)] if job.medium == "image"
             else [video_file(settings, QUICK_VIDEO if settings.quick else VIDEO).read_bytes()])
    for number in range(job.records):
        folder.joinpath(f"{number}.{job.extension}").write_bytes(media[number % len(media)])
    folder.joinpath("a.jsonl").write_text("".join(json.dumps(
        {"id": number, job.medium: f"{number}.{job.extension}", "conversations": [
            {"from": "human", "value": f"<{job.medium}>\nWhat is shown here?"},
            {"from": "gpt", "value": f"Record {number}. " + "A sentence of a caption. " * 20}]}) + "\n"
        for number in range(job.records)))
    return folder


def _picture(rng: np.random.Generator, job: Job) -> bytes:
    """Noise at several scales, as in photographs."""
    pixels = np.zeros((job.height, job.width, 3))
    for cell in (64, 16, 4, 1):
        coarse = rng.uniform(0, 255, (-(-job.height // cell), -(-job.width // cell), 3)).astype(np.uint8)
        whole = Image.fromarray(coarse).resize((job.width, job.height), Image.Resampling.BICUBIC)
        pixels += np.asarray(whole) * (0.02 if cell == 1 else 0.98 / 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _bytes(settings: Settings, job: Job) -> int:
    """Of the media."""
    return sum(path.stat().st_size for path in _input(settings, job).glob(f"*.{job.extension}"))
