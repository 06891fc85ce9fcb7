"""Writes the indices of a training corpus of any size without its media, to see what planning at that size takes.

The tars are sparse files of the right size: an index can be loaded, planned and scheduled, but no sample be read.

    python tools/simulate_manifests.py data/simulated --samples 15400000 --datasets 50
    aurora plan data.root=data/simulated stage=pretrain stages.pretrain.mixture=data/simulated/mixture.yaml
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import yaml

from aurora.files import replace_file
from aurora.registry import PROMPT, TOKENIZER
from datamodules.plan.lengths import counter, joined_path
from datamodules.shards.format import IMAGE, IMAGES, TEXT, VIDEO
from datamodules.shards.index import INDEX, MEDIA, SAMPLE, VERSION, load_index, npy_bytes

SHARD = 5000  # samples, as `aurora shards build` cuts them
SIDES = np.array([[480, 640], [427, 640], [640, 480], [768, 1024], [1080, 1920], [384, 384], [720, 1280]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=15_400_000)
    parser.add_argument("--datasets", type=int, default=50)
    parser.add_argument("--kind", choices=("mixed", "image", "video"), default="mixed")
    parser.add_argument("--tokenizer", default="rwkv_world")
    parser.add_argument("--prompts", nargs="+", default=["sandwich", "image_first"],
                        help="prompts that text lengths are written for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    # A few large datasets and many small ones, as in the paper's tables.
    shares = rng.dirichlet(np.full(options.datasets, 0.4))
    sizes = np.maximum(1, np.round(shares * options.samples)).astype(int)
    counted_by = [counter(PROMPT.build({"name": prompt}), TOKENIZER.build({"name": options.tokenizer}))
                  for prompt in options.prompts]
    for number, size in enumerate(sizes):
        write(options.folder / f"simulated_{number:02d}", int(size), options.kind, counted_by, rng)
    mixture = {f"simulated_{number:02d}": 1 for number in range(options.datasets)}
    (options.folder / "mixture.yaml").write_text(yaml.safe_dump(mixture))
    print(f"{options.folder}: {sizes.sum():,} samples in {options.datasets} datasets, mixture.yaml names them")


def write(folder: Path, size: int, kind: str, counted_by: list[str], rng: np.random.Generator) -> None:
    """The index of a dataset, its text lengths, and its tars without contents."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, media = rows(size, kind, rng)
    shards = []
    for start in range(0, size, SHARD):
        name, count = f"{start // SHARD:06d}.tar", min(SHARD, size - start)
        folder.joinpath(name).touch()
        os.truncate(folder / name, 10240 * count)
        digest = hashlib.sha256(f"{folder.name}/{name}/{count}".encode()).hexdigest()
        shards.append({"name": name, "bytes": 10240 * count, "sha256": digest, "samples": count})
    replace_file(folder / "index.samples.npy", npy_bytes(samples))
    replace_file(folder / "index.media.npy", npy_bytes(media))
    replace_file(folder / INDEX, json.dumps({"version": VERSION, "shards": shards}).encode())
    text = np.minimum(2000, 30 + rng.lognormal(5.0, 0.8, size)).astype(np.int32)
    for by in counted_by:
        replace_file(joined_path(load_index(folder), by), npy_bytes(text))


def rows(size: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """SAMPLE and MEDIA rows of about the paper's kinds: most single images, a fifth videos, some text."""
    of_kind = {"image": [0, 1, 0, 0], "video": [0, 0, 0, 1], "mixed": [0.02, 0.70, 0.08, 0.20]}[kind]
    kinds = rng.choice([TEXT, IMAGE, IMAGES, VIDEO], size, p=of_kind)
    samples = np.zeros(size, SAMPLE)
    samples["kind"], samples["shard"] = kinds, np.arange(size) // SHARD
    samples["count"] = np.where(kinds == TEXT, 0, np.where(kinds == IMAGES, rng.integers(2, 9, size), 1))
    samples["size"], samples["offset"] = rng.integers(200, 2000, size), np.arange(size) % SHARD * 10240 + 512
    samples["media"] = np.cumsum(samples["count"]) - samples["count"]
    owner = np.repeat(np.arange(size), samples["count"])
    video = kinds[owner] == VIDEO
    media = np.zeros(len(owner), MEDIA)
    media["offset"] = samples["offset"][owner] + 2048
    media["size"] = np.where(video, rng.integers(10**6, 10**7, len(owner)), rng.integers(20_000, 300_000, len(owner)))
    media["height"], media["width"] = SIDES[rng.integers(0, len(SIDES), len(owner))].T
    seconds = np.where(video, rng.gamma(2.0, 15.0, len(owner)) + 2, 0.0)
    media["frames"], media["duration"] = np.round(seconds * 25), seconds
    media["last"] = np.maximum(0, seconds - 0.04)
    return samples, media


if __name__ == "__main__":
    main()
