"""Opens thousands of videos in one process, and reads thousands of broken files: counts what came of it.

    python tools/soak_readers.py                         # 10,000 of each
    python tools/soak_readers.py --files 300 --seed 7

All work is done in a child process that says before each file which one it is. A child that dies or says nothing for
`--hang` seconds is counted with that file, and another child goes on behind it.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from aurora.errors import AuroraError, BadSample
from aurora.images import decode_image, image_shape
from aurora.interfaces import Sampling, VideoReader
from aurora.registry import READER
from datamodules.shards import format as samples
from datamodules.shards import index

HEIGHT, WIDTH, FRAMES = 48, 64, 20
KINDS = ("mp4", "webm", "jpg", "png", "webp", "json")


def main() -> int:
    """Both soaks with a table each; 1 when a child crashed or hung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="of each soak (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang", type=float, default=30.0, help="seconds (default %(default)s)")
    parser.add_argument("--reader", default="pyav")
    parser.add_argument("--child", choices=("open", "break"), help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    return max([watch(what, options) for what in ("open", "break")])


def watch(what: str, options: argparse.Namespace) -> int:
    """Runs children until every file was done; 1 when one crashed or hung."""
    counts: collections.Counter[str] = collections.Counter()
    first, start, memory = 0, time.perf_counter(), []
    while first < options.files:
        command = [sys.executable, __file__, "--child", what, "--files", str(options.files), "--seed",
                   str(options.seed), "--reader", options.reader, "--first", str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for said in lines(process, options.hang):
                if "at" in said:
                    first = said["at"] + 1
                elif "was" in said:
                    counts[said["was"]] += 1
                else:
                    memory.append(said["memory"])
            hung = process.poll() is None and not done(process)
            if hung:
                process.kill()
        if process.returncode:
            counts[f"{'HUNG' if hung else f'CRASHED ({process.returncode})'} at {first - 1}"] += 1
    print(f"{what}: {options.files} files, seed {options.seed}, {time.perf_counter() - start:.0f} s")
    for reason, count in sorted(counts.items()):
        print(f"  {count:6} {reason}")
    for begin, end, descriptors in memory:
        print(f"  resident {begin / 1e6:.0f} MB after the first tenth, {end / 1e6:.0f} MB at the end; "
              f"open files {descriptors:+d}")
    return int(any("HUNG" in reason or "CRASHED" in reason for reason in counts))


def lines(process: subprocess.Popen[bytes], seconds: float) -> Iterator[dict[str, Any]]:
    """What a child says, until it ends or is silent for so long."""
    assert process.stdout is not None
    rest, number = b"", process.stdout.fileno()
    while select.select([number], [], [], seconds)[0]:
        block = os.read(number, 1 << 16)
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from map(json.loads, whole)


def done(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child that has said its last is ending."""
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        return False
    return True


def child(options: argparse.Namespace) -> None:
    """Does the files from `first` on."""
    reader = READER.build({"name": options.reader, "timeout_seconds": options.hang})
    originals = {kind: original(kind) for kind in KINDS}
    early = options.first + max(1, (options.files - options.first) // 10)
    memory = descriptors = 0
    for number in range(options.first, options.files):
        sys.stdout.write(json.dumps({"at": number}) + "\n")
        sys.stdout.flush()
        kind = ("mp4", "webm")[number % 2] if options.child == "open" else KINDS[number % len(KINDS)]
        data = originals[kind]
        if options.child == "break":
            data = broken(data, np.random.default_rng([options.seed, number]))
        sys.stdout.write(json.dumps({"was": f"{kind}: {outcome(kind, data, reader)}"}) + "\n")
        if number == early:
            memory, descriptors = resident(), len(os.listdir("/proc/self/fd"))
    opened = len(os.listdir("/proc/self/fd")) - descriptors
    sys.stdout.write(json.dumps({"memory": [memory, resident(), opened]}) + "\n")


def outcome(kind: str, data: bytes, reader: VideoReader) -> str:
    """Reads a file as a sample's member is read, and says what came of it."""
    try:
        if kind == "json":
            samples.parse_record(data)
        elif kind in samples.IMAGE_EXTENSIONS:
            assert image_shape(data) == decode_image(data).shape[:2]
        else:
            index.measure(data)
            times = reader.times(data, Sampling(fps=4))
            shape = index.video_shape(data)
            images = [image for _, image in reader.read(data, Sampling(fps=4))]
            assert len(images) == len(times) and {image.shape[:2] for image in images} == {shape}
    except BadSample as error:
        return f"refused ({error.reason})"
    except AuroraError as error:
        words = ("truncated", "damaged", "no frame", "no video", "longer than", "pixels", "frames", "cannot be read")
        return f"refused ({next((word for word in words if word in str(error)), 'other')})"
    return "read"


def broken(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes flipped, or the end cut off, or a piece put elsewhere."""
    way, size = rng.integers(3), len(data)
    if way == 0:
        flipped = np.frombuffer(data, np.uint8).copy()
        flipped[rng.integers(0, size, rng.integers(1, 20))] ^= np.uint8(rng.integers(1, 256))
        return flipped.tobytes()
    if way == 1:
        return data[:rng.integers(0, size)]
    begin, end = sorted(rng.integers(0, size, 2))
    at = rng.integers(0, size)
    return data[:at] + data[begin:end] + data[at:]


def original(kind: str) -> bytes:
    """A whole file."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    pictures = rng.integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    if kind == "json":
        return json.dumps({"id": "a", "video": "mp4", "range": [0.5, 2], "conversations": [
            {"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(
                ["<video>\nWhat is it?", *["A circle, écrit « rond ».", "What is it?"] * 3, "A circle."])
        ]}, ensure_ascii=False).encode()
    if kind in ("jpg", "png", "webp"):
        Image.fromarray(pictures[0]).save(buffer, "JPEG" if kind == "jpg" else kind)
        return buffer.getvalue()
    with av.open(buffer, "w", format=kind) as file:
        codec, options = ("libx264", {"g": "8"}) if kind == "mp4" else ("libvpx-vp9", {"g": "8", "cpu-used": "8"})
        stream = file.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
