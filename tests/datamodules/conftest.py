"""Real videos, images and shards, small enough to be made in the tests. A frame's brightness tells its number."""

import io
import subprocess
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from aurora.images import ImagePreparation
from aurora.interfaces import Timestamps, Tokenizer, VisualLayout
from aurora.registry import DATA, MERGE, PROMPT, READER
from datamodules.inspect.validate import check_shard, tasks
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards

STEP = 8  # brightness between two frames, more than compression takes away


class Letters(Tokenizer):
    vocab_size = 257
    end_of_text = 256

    def encode(self, text):
        return [byte + 1 for byte in text.encode()]

    def decode(self, ids):
        return bytes(number - 1 for number in ids).decode(errors="replace")


def grey(number, height=48, width=64):
    return np.full((height, width, 3), number * STEP % 256, np.uint8)


def video(
    frames=10, rate=10, *, container="mp4", codec="libx264", pts=None, rotation=None, options=None, picture=grey,
    encoder=None, path=None,
):
    """The bytes of a video whose frame i is shown at pts[i] ticks of 1/rate."""
    buffer = io.BytesIO()
    buffer.name = f"video.{container}"
    with av.open(str(path) if path else buffer, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder or {})
        first = picture(0)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = (pts[number] if pts else number), 1 / Fraction(rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def sound(container="mp4"):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def picture(number=0, height=40, width=60, form="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(grey(number, height, width)).save(buffer, form)
    return buffer.getvalue()


def talk(number=0, media=""):
    return [{"from": "human", "value": f"{media}What is {number}?"}, {"from": "gpt", "value": f"It is {number}."}]


def sample(number, kind):
    key = f"part/{number:04d}"
    if kind == "text":
        return ShardSample(key, {"conversations": talk(number)})
    if kind == "image":
        return ShardSample(key, {"conversations": talk(number, "<image>\n"), "image": "jpg"}, {"jpg": picture(number)})
    if kind == "images":
        media = {"0.jpg": picture(number), "1.png": picture(number, 30, 20, "PNG")}
        return ShardSample(key, {"conversations": talk(number, "<image><image>\n"), "image": list(media)}, media)
    return ShardSample(key, {"conversations": talk(number, "<video>\n"), "video": "mp4"},
                       {"mp4": video(4 + number % 7)})


def mixed(count, kinds=("text", "image", "images", "video"), start=0):
    return [sample(number, kinds[number % len(kinds)]) for number in range(start, start + count)]


def layout(**options):
    prepare = ImagePreparation(**{"size": 32, "patch_size": 8, "resize": "crop", **options})
    return VisualLayout(prepare, MERGE.build({"name": "tome"}), depth=2, keep_ratio=0.25)


def stamped(visual):
    """The layout with timestamps."""
    return replace(visual, timestamps=Timestamps.of(Letters()))


def module(root, mixture, **options):
    visual = options.pop("layout", layout())
    prompt = PROMPT.build({"name": options.pop("prompt", "sandwich"), "timestamps": options.pop("timestamps", False)})
    visual = stamped(visual) if prompt.timestamps else visual
    config = {"name": "webdataset", "root": str(root), "mixture": mixture, "row_tokens": 400, "row_frames": 16,
              "global_batch": 12, "fps": 4.0, **options}
    return DATA.build(config, tokenizer=Letters(), prompt=prompt, layout=visual, reader=READER.build({"name": "pyav"}))


def texts(batch):
    """The text of every sequence of a row, visual positions left out."""
    return [Letters().decode([token for token in batch.tokens[start:stop].tolist() if token])
            for start, stop in pairwise(batch.cu_seqlens.tolist())]


def timestamps(batch):
    """The text in front of every frame of a row, in the order of the row."""
    places = sorted((int(place[0]), group.timestamp) for group in batch.frames for place in group.positions)
    return [Letters().decode(batch.tokens[place - size:place].tolist()) for place, size in places]


def answers(batch):
    """The last word of every real sequence: which sample it is."""
    return [text.split()[-1].rstrip(".") for text in texts(batch) if text]


def wrong(folder):
    """What `aurora shards validate` finds in a folder."""
    checks, found = tasks(folder, decode=0, reader={"name": "pyav"})
    return [*found, *(finding for check in checks for finding in check_shard(check).findings)]


@pytest.fixture(scope="session")
def make():
    """The makers above: tests are no package, so that they cannot be imported."""
    return SimpleNamespace(**{name: thing for name, thing in globals().items() if not name.startswith("_")})


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True,
                      check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # what was mapped may still be


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A root with the datasets `mixed` (all kinds, 40 samples) and `text` (10)."""
    root = Path(tmp_path_factory.mktemp("shards"))
    write_shards(mixed(40), root / "mixed", samples_per_shard=15)
    write_shards(mixed(10, ("text",), 100), root / "text")
    return root
