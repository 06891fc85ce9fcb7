"""What a stage takes on 8 to 1,024 GPUs: a model of the step, the loader, the checkpoints and the faults.

    python tools/simulate_scale.py experiment=auroralong --stage language_video          the table

Everything that is assumed is an option. Times add up so: products at a share of the peak; communication overlaps with
them up to a share; the rest is waited for. `tools/check_scale.py` compares the model with two real processes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from aurora.config import load_config
from aurora.model import AuroraModel
from aurora.recipe import Recipe
from aurora.training.budget import Arithmetic
from aurora.training.distributed.strategies import blocks
from aurora.training.stage import skeleton


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines; rates per GPU unless said otherwise."""

    gpus_per_node: int = 8
    peak: float = 989e12  # FLOP/s, bfloat16
    used: float = 0.4  # of the peak, while products are computed
    inside: float = 300e9  # bytes/s to the other GPUs of a node
    between: float = 40e9  # bytes/s to other nodes
    latency: float = 30e-6  # seconds of a collective, times the logarithm of its ranks
    overlap: float = 0.8  # share of the arithmetic behind which communication can hide
    to_host: float = 20e9  # bytes/s
    node_disk: float = 2e9  # bytes/s of a node to the store
    store: float = 100e9  # bytes/s of the store together
    mean_hours: float = 50_700  # between faults of one GPU: 419 in 54 days on 16,384 (arXiv 2407.21783, section 3.3.4)
    restart: float = 180  # seconds from a fault to the first step, loading left out
    decode: float = 120e6  # pixels per second and core
    cores: int = 96  # per node


class Sample(NamedTuple):
    """What a sample is on average."""

    frames: float
    tokens: float  # row positions
    targets: float
    megapixels: float  # that are decoded
    bytes: float


SAMPLES = {
    "pretrain": Sample(1, 576 + 120, 100, 0.5, 150e3),
    "vision": Sample(1, 576 + 150, 60, 0.5, 150e3),
    "language_image": Sample(1, 58 + 350, 250, 0.5, 150e3),
    "language_video": Sample(12, 12 * 58 + 300, 250, 12 * 0.2, 2e6),
}
"""Frames as the stage reads them; lengths and sizes are typical ones, videos transcoded to a short side of 384."""


class Row(NamedTuple):
    """A stage on so many GPUs."""

    gpus: int
    strategy: str
    occupied: float  # share of the GPUs' rows that are real, when a step's rows are dealt out
    step: float  # seconds
    products: float  # seconds of it
    exposed: float  # seconds of communication that nothing hides
    sent: float  # bytes that a GPU receives per step
    cores: float  # per node, to decode
    read: float  # bytes/s per node
    checkpoint: float  # bytes
    blocked: float  # seconds that training waits for a save
    written: float  # seconds until it is on disk
    interval: float  # seconds between saves that lose least
    goodput: float  # share of the time that becomes training
    hours: float  # of the stage, faults included


def simulate(model: AuroraModel, recipe: Recipe, sample: Sample, samples: float, row_tokens: int, gpus: int,
             strategy: str, cluster: Cluster) -> Row:
    """A row of the table: `samples` are all that the stage reads."""
    rows = max(1, math.ceil(recipe.global_batch * sample.tokens / row_tokens))
    turns = math.ceil(rows / gpus)
    occupied = rows / (turns * gpus)
    batch = recipe.global_batch
    flops = Arithmetic.of(model, recipe.keep_ratio).training(
        model, frames=batch * sample.frames, positions=batch * sample.tokens, targets=batch * sample.targets)
    # the slowest GPU has a whole row in every turn
    products = flops / (gpus * cluster.peak * cluster.used) / occupied
    seconds, sent = communication(model, turns, gpus, strategy, cluster)
    exposed = max(0.0, seconds - cluster.overlap * products)
    step = products + exposed
    nodes = max(1, gpus // cluster.gpus_per_node)
    rate = batch / step
    saved = checkpoint_bytes(model)
    blocked = saved / gpus / cluster.to_host
    written = saved / min(nodes * cluster.node_disk, cluster.store)
    between_faults = cluster.mean_hours * 3600 / gpus
    interval = max(written, math.sqrt(2 * blocked * between_faults))
    lost = interval / 2 + cluster.restart + saved / min(nodes * cluster.node_disk, cluster.store)
    goodput = max(0.0, 1 - blocked / interval - lost / between_faults)
    return Row(gpus, strategy, occupied, step, products, exposed, sent,
               rate * sample.megapixels * 1e6 / cluster.decode / nodes, rate * sample.bytes / nodes, saved, blocked,
               written, interval, goodput, samples / rate / 3600 / max(goodput, 1e-9))


def communication(model: AuroraModel, turns: int, gpus: int, strategy: str, cluster: Cluster) -> tuple[float, float]:
    """Seconds and bytes received by a GPU per step of `turns` rows."""
    weights, learned = gathered_bytes(model)
    collectives = turns * 3 * unit_count(model) * cluster.latency * math.log2(max(2, gpus))
    if strategy == "ddp":
        # a ring sends gradients twice, within nodes and between them at the slower rate
        size = 2 * learned * (gpus - 1) / gpus
        rate = cluster.inside if gpus <= cluster.gpus_per_node else cluster.between
        return size / rate + cluster.latency * math.log2(max(2, gpus)), size
    if strategy == "fsdp":
        size = turns * (2 * weights + learned) * (gpus - 1) / gpus
        rate = cluster.inside if gpus <= cluster.gpus_per_node else cluster.between
        return size / rate + collectives, size
    inside = min(gpus, cluster.gpus_per_node)
    nodes = gpus / inside
    near = turns * (2 * weights + learned) * (inside - 1) / inside
    far = 2 * learned / inside * (nodes - 1) / nodes
    return near / cluster.inside + far / cluster.between + collectives, near + far


def gathered_bytes(model: AuroraModel) -> tuple[float, float]:
    """What a rank gathers of weights in one pass, and what it sends of gradients, both in float32 as the master
    weights are."""
    return (sum(4.0 * p.numel() for p in model.parameters()),
            sum(4.0 * p.numel() for p in model.parameters() if p.requires_grad))


def unit_count(model: AuroraModel) -> int:
    """What is gathered as one: blocks, connector, root."""
    return sum(1 for _ in blocks(model)) + 2


def checkpoint_bytes(model: AuroraModel) -> float:
    """Learned weights and both moments in float32."""
    return 12.0 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def best_row_tokens(recipe: Recipe, sample: Sample, gpus: int, most: int, keep: int) -> int:
    """The longest row with which every GPU has one per step; no shorter than a sample."""
    wanted = recipe.global_batch * sample.tokens / gpus
    return int(min(most, max(wanted, sample.tokens, keep)))


def table(arguments: argparse.Namespace) -> int:
    """Prints the lines of a stage as Markdown."""
    config = load_config(*arguments.overrides)
    recipe = config.stages[arguments.stage]
    model = skeleton(config, arguments.stage)
    sample = SAMPLES[arguments.stage]
    cluster = replace(Cluster(), **{name: value for name, value in vars(arguments).items()
                                    if name in Cluster.__dataclass_fields__ and value is not None})
    print("| GPUs | strategy | row | occupied | step, s | exposed, s | received/step, GB | decode cores/node | "
          "read/node, MB/s | save every, min | blocked, s | goodput | hours | × |")
    print("|---|" + "---|" * 13)
    first: Row | None = None
    for gpus in arguments.gpus:
        length = best_row_tokens(recipe, sample, gpus, arguments.row_tokens, 1024)
        for strategy in ("ddp", "fsdp", "fsdp_hybrid") if gpus > cluster.gpus_per_node else ("ddp", "fsdp"):
            row = simulate(model, recipe, sample, arguments.samples, length, gpus, strategy, cluster)
            first = first or row
            print(f"| {gpus:,} | {strategy} | {length:,} | {row.occupied:.0%} | {row.step:.2f} | {row.exposed:.2f} | "
                  f"{row.sent / 1e9:.1f} | {row.cores:.1f} | {row.read / 1e6:.0f} | {row.interval / 60:.1f} | "
                  f"{row.blocked:.2f} | {row.goodput:.1%} | {row.hours:,.1f} | {first.hours / row.hours:.1f} |")
    print(f"\nA checkpoint has {checkpoint_bytes(model) / 1e9:.1f} GB; {arguments.samples:,.0f} samples of "
          f"{sample.tokens:,.0f} positions, {recipe.global_batch} per step.")
    return 0


def main() -> int:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the config")
    parser.add_argument("--stage", default="language_video", choices=[*SAMPLES])
    parser.add_argument("--samples", type=float, default=4.2e6, help="that the stage reads, epochs included")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--row-tokens", type=int, default=16384, help="of a row at most")
    for name, kind in (("peak", float), ("used", float), ("inside", float), ("between", float), ("overlap", float),
                       ("mean_hours", float), ("node_disk", float), ("store", float)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, dest=name)
    return table(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
