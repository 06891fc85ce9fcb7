"""What a stage reads, dataset by dataset: measured from shards, or estimated from published counts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from aurora.interfaces import Sampling, VisualLayout
from aurora.mixture import Mixture, take

from ..build.catalogue import Dataset, known_datasets, load_dataset
from ..plan.corpus import Corpus, square_positions
from ..plan.epoch import EpochPlan
from ..reader._decode import sample_counts
from ..shards.format import VIDEO
from ..shards.index import DatasetIndex

ASSUMED = {"text_tokens": 200, "images": 4, "video_seconds": 30.0, "frames_per_second": 30.0, "image_megapixels": 0.3,
           "video_megapixels_per_second": 27.6}
"""What published counts leave open, per sample: 200 text tokens, 4 pictures where there are several, half a minute of
720p video at 30 frames per second."""


class DatasetReads(NamedTuple):
    """What an epoch reads of a dataset, repeats included except in `samples`."""

    dataset: str
    group: str | None
    held: int  # samples that are there
    samples: int  # different ones that are read
    visits: int
    tokens: int  # row positions
    frames: int
    bytes: int | None
    image_megapixels: float  # decoded
    video_megapixels: float  # decoded, were every frame of a video needed
    dropped: int
    shrunk: int
    counted: str  # "measured", "published", "group" where only the group's count is known, or "unknown"
    published: int | None  # samples that its makers state


def measured(corpus: Corpus, plan: EpochPlan, mixture: Mixture) -> dict[str, Any]:
    """What an epoch reads of shards, how full rows are, and what became of samples."""
    reads, known, steps = [], set(known_datasets()), plan.steps_before(1, 0)
    visits = np.split(plan.visits(steps), corpus.starts[1:-1])
    for number, (index, of) in enumerate(zip(corpus.datasets, visits, strict=True)):
        here = slice(*corpus.starts[number:number + 2].tolist())
        name, count = index.folder.name, corpus.counts[number]
        size, images, videos = _weight(index, of)
        reads.append(DatasetReads(
            name, mixture.datasets[name].group, count.samples, int((of > 0).sum()), int(of.sum()),
            int(of @ corpus.tokens[here]), int(of @ corpus.frames[here]), size, images, videos, count.dropped,
            count.shrunk, "measured", load_dataset(name).samples if name in known else None))
    there, (tokens, frames) = {read.dataset for read in reads}, plan.fill()
    return {"datasets": [read._asdict() for read in reads], "steps_per_epoch": steps,
            "fill": {"tokens": tokens, "frames": frames},
            "missing": [name for name in mixture.datasets if name not in there]}


def published(
    mixture: Mixture, catalogue: Mapping[str, Dataset], layout: VisualLayout | None, sampling: Sampling
) -> dict[str, Any]:
    """The same from a catalogue's counts and `ASSUMED`; nothing is known of rows."""
    sizes, counted = _sizes(mixture, catalogue)
    taken = take(mixture, sizes)
    seconds, reads = np.array([ASSUMED["video_seconds"]]), []
    for name, part in mixture.datasets.items():
        known, visits = catalogue.get(name), taken[name].visits
        kind = known.kinds[0] if known else "image"
        frames = {"text": 0, "image": 1, "images": int(ASSUMED["images"]),
                  "video": int(sample_counts(sampling, seconds, seconds * ASSUMED["frames_per_second"])[0])}[kind]
        tokens = int(ASSUMED["text_tokens"]) + frames * square_positions(layout)
        size = known.bytes * visits // known.samples if known and known.bytes and known.samples else None
        video = ASSUMED["video_megapixels_per_second"] * ASSUMED["video_seconds"] * visits if kind == "video" else 0.0
        image = 0.0 if kind == "video" else ASSUMED["image_megapixels"] * frames * visits
        reads.append(DatasetReads(
            name, part.group, sizes[name], taken[name].samples, visits, visits * tokens, visits * frames, size, image,
            video, 0, 0, counted[name], known.samples if known else None))
    return {"datasets": [read._asdict() for read in reads], "steps_per_epoch": None, "fill": None,
            "missing": [name for name in mixture.datasets if counted[name] == "unknown"]}


def _sizes(mixture: Mixture, catalogue: Mapping[str, Dataset]) -> tuple[dict[str, int], dict[str, str]]:
    """How many samples each dataset has, and who says so; what is left of a group goes to those that nobody counted."""
    sizes, counted = {}, {}
    for name, part in mixture.datasets.items():
        known = catalogue[name].samples if name in catalogue else None
        size = known if known is not None else part.samples
        sizes[name], counted[name] = size or 0, "unknown" if size is None else "published"
    for group, limits in mixture.groups.items():
        unknown = [name for name, part in mixture.datasets.items()
                   if part.group == group and counted[name] == "unknown"]
        total = limits.samples or limits.paper
        if not unknown or total is None:
            continue
        left = max(0, total - sum(size for name, size in sizes.items() if mixture.datasets[name].group == group))
        for number, name in enumerate(unknown):
            sizes[name], counted[name] = left // len(unknown) + (number < left % len(unknown)), "group"
    return sizes, counted


def _weight(index: DatasetIndex, visits: np.ndarray) -> tuple[int, float, float]:
    """Bytes, megapixels of images and megapixels of videos of so many visits to each sample."""
    samples, media = index.samples, index.media
    size = int(visits @ samples["size"].astype(np.int64))
    of_medium = np.repeat(visits, samples["count"])
    size += int(of_medium @ media["size"].astype(np.int64))
    pixels = of_medium * (media["height"].astype(np.float64) * media["width"]) / 1e6
    video = np.repeat(samples["kind"] == VIDEO, samples["count"])
    return size, float(pixels[~video].sum()), float((pixels * media["frames"])[video].sum())
