"""How much arithmetic training takes: of any parts, told from the shapes of their matrices.

Counted are products with weights, attention, and the recurrence; norms and elementwise work are left out, as is what
is computed again in the backward pass. A multiplication and an addition are two.

Shape letters: M tokens of a frame, Dv vision width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from aurora.assemble import WEIGHTED_SLOTS
from aurora.interfaces import Backbone, VisionEncoder
from aurora.model import AuroraModel

STATE_OPERATIONS = 6
"""Per element of the state and position: the outer product, the decay and the reading of it, each times and plus."""
PEAKS = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "H800": 989.0, "GH200": 989.0, "A100": 312.0,
    "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A40": 150.0, "A10": 125.0, "RTX 4090": 165.0,
    "RTX 3090": 71.0, "MI300X": 1307.0, "V100": 125.0, "V100-PCIE": 112.0, "V100S": 130.0, "Tesla T4": 65.0,
    "RTX 2080 Ti": 53.8,
}
"""TFLOP/s of dense bfloat16 products, of float16 where there is no bfloat16, that makers state, by a part of the
device's name, the longer name first."""


class Arithmetic(NamedTuple):
    """FLOPs of the forward pass, by slot."""

    vision: float  # of a frame
    connector: float  # of a frame
    backbone: float  # of a row position
    head: float  # of a position that is learned


def forward_flops(model: AuroraModel, keep_ratio: float) -> Arithmetic:
    """What one of each takes, for frames of the size that the encoder prepares."""
    prepare = model.vision.prepare
    patches = prepare.patches(prepare.size, prepare.size)
    keep = model.merge.keep(patches, model.vision.depth, keep_ratio)
    removed = model.merge.schedule(patches, model.vision.depth, keep)
    return Arithmetic(
        _vision_flops(model.vision, patches, removed),
        2.0 * keep * sum(matrix.numel() for matrix in _matrices(model.connector)),
        2.0 * _block_numbers(model.backbone) + STATE_OPERATIONS * _state_numbers(model.backbone),
        2.0 * model.backbone.vocab_size * model.backbone.hidden_size,
    )


def training_flops(
    model: AuroraModel, each: Arithmetic, *, frames: float, positions: float, targets: float
) -> float:
    """What a step of so many frames, row positions and learned positions takes, forward and backward.

    A slot whose weights learn takes three times its forward pass; one that only hands gradients on takes two; one that
    stands before all that learns takes one.
    """
    learns = {slot: any(p.requires_grad for p in getattr(model, slot).parameters()) for slot in WEIGHTED_SLOTS}
    passes, before = {}, False
    for slot in WEIGHTED_SLOTS:
        before = before or learns[slot]
        passes[slot] = 1 + before + learns[slot]
    return (frames * (passes["vision"] * each.vision + passes["connector"] * each.connector)
            + passes["backbone"] * (positions * each.backbone + targets * each.head))


def reading_flops(each: Arithmetic, *, frames: float, positions: float, targets: float) -> float:
    """What the forward pass over so many of each takes, as in validation."""
    return frames * (each.vision + each.connector) + positions * each.backbone + targets * each.head


def peak_flops(device: torch.device, told: float | None = None) -> float | None:
    """What a device can do per second: so many TFLOP/s as was `told`, or, in 16 bits, what a GPU's maker says; None
    where that is not known."""
    if told is not None:
        return told * 1e12
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """The same by the name of a device."""
    known = [part for part in PEAKS if part in name]
    return PEAKS[max(known, key=len)] * 1e12 if known else None


def _vision_flops(vision: VisionEncoder, patches: int, removed: tuple[int, ...]) -> float:
    blocks = [module for module in vision.modules() if isinstance(module, vision.block_class)]
    inside = {module for block in blocks for module in block.modules()}
    embedding = sum(module.weight.numel() for module in vision.modules()
                    if isinstance(module, nn.Linear | nn.Conv2d) and module not in inside)
    flops, tokens = 2.0 * patches * embedding, patches
    for block, remove in zip(blocks, removed, strict=False):
        # attention reads what enters, the MLP what remains
        products = sum(matrix.numel() for matrix in _matrices(block))
        flops += 2.0 * products * (tokens - remove / 2) + 4.0 * tokens**2 * vision.width
        tokens -= remove
    return flops


def _block_numbers(backbone: Backbone) -> int:
    """Weights that every position is multiplied with: neither embedding nor head."""
    tables = {parameter for module in backbone.modules() if isinstance(module, nn.Embedding)
              for parameter in module.parameters()}
    return sum(matrix.numel() for matrix in _matrices(backbone)
               if matrix not in tables and backbone.vocab_size not in matrix.shape)


def _state_numbers(backbone: Backbone) -> int:
    """Elements of a sequence's memory; a cache that grows is left to the products."""
    if not backbone.constant_state:
        return 0
    return sum(tensor.numel() for tensor in backbone.init_state(1).values())


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    for parameter in module.parameters():
        if sum(side > 1 for side in parameter.shape) > 1:
            yield parameter
