"""Reading shards: members by offset, decoded rows from worker processes, and rows from one process to another."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora.images import ImagePreparation
from aurora.interfaces import Sampling, VisualLayout
from aurora.registry import DATA, MERGE, PROMPT, READER, TOKENIZER
from datamodules.loading.supervisor import start_method
from datamodules.shards.format import ShardSample
from datamodules.shards.index import load_index
from datamodules.shards.tar import ShardFiles
from tools.bench.case import Case, Contestant, Settings
from tools.bench.machine import Cost
from tools.bench.row_handing import WAYS, hand_over
from tools.bench.timing import Work
from tools.tiny_shards import write_shards

WORKERS = 2
SIDE = 384


class Size(NamedTuple):
    """How much is read."""

    samples: int  # of pictures
    clips: int
    frames: int  # of each clip
    rows: int  # handed from process to process
    row_frames: int


FULL, QUICK = Size(8000, 64, 32, 40, 64), Size(60, 4, 4, 3, 2)


def data(settings: Settings) -> list[Case]:
    """What the loader is made of, and the whole of it."""
    size = QUICK if settings.quick else FULL
    pictures, clips = partial(_pictures, settings.folder, size), partial(_clips, settings.folder, size)
    row_bytes = float(size.row_frames * 3 * SIDE * SIDE)
    return [
        Case(f"{size.samples} samples with a picture each, read and not decoded, from the page cache",
             [Contestant("aurora, in the order of the shards", partial(_members, pictures, False), files=pictures),
              Contestant("aurora, shuffled", partial(_members, pictures, True), files=pictures),
              Contestant("webdataset", partial(_webdataset, pictures), files=pictures)],
             Cost(0.0, _bytes(pictures())), 0.0, items=size.samples, unit="samples"),
        Case(f"{size.clips} clips of {size.frames} frames to prepared frames, {WORKERS} processes",
             [Contestant("aurora's loader", partial(_loader, clips), files=clips),
              Contestant("decoding alone", partial(_decoding, clips), files=clips)],
             Cost(0.0, _bytes(clips())), 1e-6, items=size.clips * size.frames, unit="frames"),
        Case(f"{size.rows} rows of {size.row_frames} frames from one process to another",
             [Contestant(name, partial(hand_over, way, size.rows, (size.row_frames, 3, SIDE, SIDE)))
              for name, way in WAYS.items()],
             Cost(0.0, size.rows * row_bytes), 0.0, items=size.rows, unit="rows"),
    ]


def _members(folder: Callable[[], Path], shuffled: bool) -> Work:
    index = load_index(folder() / "d")
    files = ShardFiles()
    order = np.random.default_rng(0).permutation(len(index)) if shuffled else np.arange(len(index))

    def work() -> Tensor:
        size = 0
        for sample in order.tolist():
            key, record = files.record(index, sample)
            size += len(record) + len(files.media(index, sample, 0, f"{key}.jpg"))
        return torch.tensor([len(index), size], dtype=torch.float64)

    return work


def _webdataset(folder: Callable[[], Path]) -> Work:
    import webdataset

    tars = sorted(map(str, folder().glob("d/*.tar")))

    def work() -> Tensor:
        samples = size = 0
        for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
            samples, size = samples + 1, size + len(sample["json"]) + len(sample["jpg"])
        return torch.tensor([samples, size], dtype=torch.float64)

    return work


def _loader(folder: Callable[[], Path]) -> Work:
    root = folder()
    frames = json.loads((root / "frames.json").read_text())
    module = DATA.build(
        {"name": "webdataset", "root": str(root), "row_tokens": 4096, "row_frames": frames, "frames": frames,
         "workers": WORKERS},
        mixture={"d": 1}, global_batch=4, tokenizer=TOKENIZER.build({"name": "bytes"}), seed=0, epochs=1 << 20,
        prompt=PROMPT.build({"name": "sandwich"}), layout=_layout(), reader=READER.build({"name": "pyav"}))
    rows = chain.from_iterable(module.train_dataloader())

    def work() -> Tensor:
        """One epoch of many: workers have started, and end with as many rows ready as they began with."""
        found = torch.zeros(2, dtype=torch.float64)
        for row in rows:
            for group in row.frames:
                found += _told(group.pixels)
            if row.closes_step and row.position[1:] == (0, 0):
                break
        return found

    return work


def _decoding(folder: Callable[[], Path]) -> Work:
    root = folder()
    pool = multiprocessing.get_context(start_method()).Pool(WORKERS)
    frames = json.loads((root / "frames.json").read_text())

    def work() -> Tensor:
        parts = pool.imap_unordered(partial(_decoded, root, frames), _places(root))
        return torch.stack(list(parts)).sum(0)

    pool.map(len, [""] * WORKERS)
    return work


def _decoded(root: Path, frames: int, place: tuple[int, int, int]) -> Tensor:
    torch.set_num_threads(1)
    shard, offset, size = place
    with sorted(root.glob("d/*.tar"))[shard].open("rb") as file:
        file.seek(offset)
        raw = file.read(size)
    reader, prepare = READER.build({"name": "pyav"}), _layout().prepare
    return _told(torch.stack([prepare(image) for _, image in reader.read(raw, Sampling(frames=frames))]))


def _places(root: Path) -> Iterator[tuple[int, int, int]]:
    index = load_index(root / "d")
    for number in range(len(index)):
        row = index.media_of(number)[0]
        yield int(index.samples[number]["shard"]), int(row["offset"]), int(row["size"])


def _told(pixels: Tensor) -> Tensor:
    """What says cheaply whether frames are the same: their number, and the sum of a few pixels."""
    return torch.tensor([len(pixels), float(pixels[:, :, ::37, ::41].sum(dtype=torch.int64))], dtype=torch.float64)


def _layout() -> VisualLayout:
    return VisualLayout(ImagePreparation(size=SIDE, patch_size=16), MERGE.build({"name": "tome"}), 23, 0.1)


def _pictures(folder: Path, size: Size) -> Path:
    """Shards of small pictures."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 96, 128, 3), np.uint8)
    media = [_jpeg(pixels) for pixels in noise]
    return _shards(folder / "pictures", size.samples, "image", "jpg", media)


def _clips(folder: Path, size: Size) -> Path:
    """Shards of clips at 360p."""
    root = folder / "clips"
    if not root.joinpath("frames.json").is_file():
        media = [_clip(seed, size.frames) for seed in range(min(8, size.clips))]
        _shards(root, size.clips, "video", "mp4", media)
        root.joinpath("frames.json").write_text(json.dumps(size.frames))
    return root


def _shards(root: Path, count: int, kind: str, extension: str, media: list[bytes]) -> Path:
    if root.joinpath("d", "index.json").is_file():
        return root
    turns: Any = [{"from": "human", "value": f"<{kind}>\nWhat is shown?"}, {"from": "gpt", "value": "A thing. " * 10}]
    write_shards(
        (ShardSample(f"{number:08d}", {"conversations": turns, kind: extension},
                     {extension: media[number % len(media)]}) for number in range(count)), root / "d")
    return root


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _clip(seed: int, frames: int) -> bytes:
    """A noisy picture that moves."""
    import av

    coarse = np.random.default_rng(seed).integers(0, 255, (45, 80, 3), np.uint8)
    still = np.asarray(Image.fromarray(coarse).resize((640, 360), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 360, 640, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(still, 5 * number, 1)), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def _bytes(root: Path) -> float:
    return float(sum(path.stat().st_size for path in root.glob("d/*.tar")))
