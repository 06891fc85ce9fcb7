"""Decoding: sampled frames of a long video, and pictures.

Every video reader gives the same frames [H, W, 3] uint8, which are compared; they are asked as their users ask them.
"""

from __future__ import annotations

import importlib
import io
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora.images import ImagePreparation, decode_image
from aurora.interfaces import Sampling
from aurora.registry import READER
from tools.bench.case import Case, Contestant, Settings
from tools.bench.machine import Cost
from tools.bench.timing import Work

RATE = 30
SCENE = 150  # frames until the next cut
BIT_RATE = 3_000_000
BATCH = 8  # frames at a time, where a reader gives several
TOLERANCE = 2e-2  # colours are converted by other versions of FFmpeg, or elsewhere
ROUNDING = 2e-3  # of resized pixels
STEP = 4  # every fourth pixel of a side is kept to be compared
PICTURES, QUICK_PICTURES, PREPARED = 64, 4, 384

Frames = Iterator[np.ndarray]
Reading = Callable[[Path, Sampling, list[int], int], Frames]
"""From a file, what is sampled, the numbers of these frames and a number of threads to the frames."""


class Size(NamedTuple):
    """A video: a stretch of moving pictures, and how often it is repeated."""

    seconds: int
    repeats: int
    height: int
    width: int


FULL, QUICK = Size(60, 10, 720, 1280), Size(2, 2, 180, 320)


def data(settings: Settings) -> list[Case]:
    """One frame per second with one thread and with two, a few frames of the same file, and pictures."""
    size = QUICK if settings.quick else FULL
    total = size.seconds * size.repeats
    each = {"1 frame per second": Sampling(fps=1), "8 frames": Sampling(frames=8)}
    ways = [("1 frame per second", 1), ("1 frame per second", 2), ("8 frames", 1)]
    return [*(_videos(settings, size, f"{name} of {total} s of H.264, {size.width}×{size.height}, threads: {threads}",
                      each[name], threads) for name, threads in ways), _pictures(settings)]


def _videos(settings: Settings, size: Size, name: str, sampling: Sampling, threads: int) -> Case:
    seconds = size.seconds * size.repeats
    times = READER.build({"name": "pyav"}).times(str(video_file(settings, size)), sampling)
    numbers = [int(time * RATE + 1e-3) for time in times]
    readings: list[tuple[str, Reading, str | None]] = [
        ("aurora", _aurora, None), ("decord", _decord, _missing("decord")),
        ("torchcodec", _torchcodec, _missing("torchcodec")), ("PyAV, every frame", _pyav, None),
        ("ffmpeg", _ffmpeg, None if shutil.which("ffmpeg") else "not installed: apt-get install ffmpeg")]
    # Nobody counts the arithmetic of a decoder: the limit is that of reading the file and writing the frames.
    moved = video_file(settings, size).stat().st_size + len(times) * size.height * size.width * 3
    return Case(
        name, [Contestant(reader, partial(_work, settings, size, read, sampling, numbers, threads), missing)
               for reader, read, missing in readings],
        Cost(0.0, float(moved)), TOLERANCE, items=float(seconds), unit="s of video")


def _work(
    settings: Settings, size: Size, read: Reading, sampling: Sampling, numbers: list[int], threads: int
) -> Work:
    path = video_file(settings, size)
    return lambda: [torch.from_numpy(image[::STEP, ::STEP].copy()) for image in read(path, sampling, numbers, threads)]


def _aurora(path: Path, sampling: Sampling, numbers: list[int], threads: int) -> Frames:
    for _, image in READER.build({"name": "pyav", "threads": threads}).read(str(path), sampling):
        yield image


def _decord(path: Path, sampling: Sampling, numbers: list[int], threads: int) -> Frames:
    video = importlib.import_module("decord").VideoReader(str(path), num_threads=threads)
    for batch in _batches(numbers):
        yield from video.get_batch(batch).asnumpy()


def _torchcodec(path: Path, sampling: Sampling, numbers: list[int], threads: int) -> Frames:
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
    video = decoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
    for batch in _batches(numbers):
        yield from video.get_frames_at(batch).data.numpy()


def _pyav(path: Path, sampling: Sampling, numbers: list[int], threads: int) -> Frames:
    wanted = set(numbers)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "FRAME" if threads > 1 else "SLICE", threads
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                yield frame.to_ndarray(format="rgb24")


def _ffmpeg(path: Path, sampling: Sampling, numbers: list[int], threads: int) -> Frames:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shape = (stream.height, stream.width, 3)
    step = f"not(mod(n,{RATE}))" if sampling.fps else "+".join(f"eq(n,{number})" for number in numbers)
    command = ["ffmpeg", "-v", "error", "-threads", str(threads), "-i", str(path), "-vf", f"select='{step}'",
               "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while raw := process.stdout.read(int(np.prod(shape))):
            yield np.frombuffer(raw, np.uint8).reshape(shape)


def _batches(numbers: list[int]) -> Iterable[list[int]]:
    return (numbers[at:at + BATCH] for at in range(0, len(numbers), BATCH))


def _missing(module: str) -> str | None:
    """Why a reader cannot take part."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"does not load: {' '.join(str(error).split())[:120]}"
    return None


def video_file(settings: Settings, size: Size) -> Path:
    """H.264 as x264 makes it by itself, which is repeated without being encoded again."""
    path, once = (settings.folder / f"video-{size.seconds * times}.mp4" for times in (size.repeats, 1))
    if not path.is_file():
        with av.open(str(once), "w") as file:
            stream = file.add_stream("libx264", rate=RATE, options={"preset": "fast", "b": str(BIT_RATE)})
            stream.height, stream.width, stream.pix_fmt = size.height, size.width, "yuv420p"
            # Frames in parallel, because slices in parallel would be in the file.
            stream.thread_type = "FRAME"
            for picture in islice(_pictures_in_motion(size), size.seconds * RATE):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
            file.mux(stream.encode())
        _repeat(once, path, size)
    return path


def _repeat(once: Path, path: Path, size: Size) -> None:
    with av.open(str(path), "w") as file:
        stream: Any = None
        for number in range(size.repeats):
            with av.open(str(once)) as given:
                source = given.streams.video[0]
                stream = stream or file.add_stream_from_template(source)
                for packet in given.demux(source):
                    if packet.size:
                        shift = round(number * size.seconds / packet.time_base)
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + shift, packet.dts + shift
                        file.mux(packet)


def _pictures_in_motion(size: Size) -> Iterator[np.ndarray]:
    """[H * 3/2, W] uint8, yuv420p: textures like those of photographs that pass over each other, with some grain."""
    rng = np.random.default_rng(0)
    height, width = size.height, size.width
    grain = rng.integers(-1, 2, (height + 64, width + 64)).astype(np.int16)
    while True:
        back, front = _texture(rng, height + SCENE, width + 2 * SCENE), _texture(rng, height // 2, width // 3)
        down, right = rng.integers(0, height // 2), rng.integers(0, width // 2)
        for number in range(SCENE):
            light = back[number:number + height, 2 * number:2 * number + width].copy()
            x = int(right + width / 6 * np.sin(number / 20)) % (width - front.shape[1])
            light[down:down + front.shape[0], x:x + front.shape[1]] = front
            y, z = rng.integers(0, 64, 2)
            light = np.clip(light + grain[y:y + height, z:z + width], 16, 235).astype(np.uint8)
            half = light[::2, ::2]
            yield np.concatenate([light, np.concatenate([half, 255 - half]).reshape(height // 2, width)])


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise whose spectrum falls with the frequency."""
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.sqrt(down ** 2 + right ** 2)
    frequency[0, 0] = 1
    found = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency ** 1.2, (height, width))
    return np.asarray(np.clip(128 + 50 * (found - found.mean()) / found.std(), 16, 235).astype(np.uint8))


def _pictures(settings: Settings) -> Case:
    count = QUICK_PICTURES if settings.quick else PICTURES
    files = [_jpeg(seed) for seed in range(count)]
    prepare = ImagePreparation(size=PREPARED, patch_size=16)
    moved = sum(len(file) for file in files) + count * 3 * PREPARED**2
    return Case(
        f"{count} JPEGs of 640×480 to {PREPARED}×{PREPARED} pixels",
        [Contestant("aurora", lambda: lambda: [prepare(decode_image(file)) for file in files]),
         Contestant("PIL", lambda: lambda: [_plain(file) for file in files])],
        Cost(0.0, float(moved)), ROUNDING, items=count, unit="pictures")


def _plain(file: bytes) -> Tensor:
    """The least that gives the same pixels."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    left = (image.width - image.height) / 2
    image = image.resize((PREPARED, PREPARED), Image.Resampling.BICUBIC,
                         (left, 0, left + image.height, image.height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([_texture(rng, 480, 640) for _ in range(3)], -1)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
