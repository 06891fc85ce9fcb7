"""What training a stage takes: FLOPs, and on given hardware the memory of a device, hours and cost.

Counted are products with weights, attention, and the recurrence, not norms, elementwise work and what activation
checkpointing computes again; a multiplication and an addition are two. Memory is that of weights, gradients, AdamW's
moments, what FSDP gathers, and activations, which were counted on the parts of this repository.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from aurora.errors import AuroraError
from aurora.interfaces import VisionEncoder
from aurora.losses import LOGIT_BYTES
from aurora.model import AuroraModel
from aurora.recipe import TrainerOptions
from aurora.registry import WEIGHTED_SLOTS
from aurora.training.checkpoint.layout import KEPT_CHECKPOINTS
from aurora.training.distributed.strategies import blocks, blocks_of
from aurora.training.optim import is_matrix, tables

# ---- arithmetic ------------------------------------------------------------------------------------------------

STATE_OPERATIONS = 6
"""Per element of the state and position: the outer product, the decay and the reading of it, each times and plus."""
PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "H800": 989.0, "GH200": 989.0, "A100": 312.0,
    "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A40": 150.0, "A10": 125.0, "RTX 4090": 165.0,
    "RTX 3090": 71.0, "MI300X": 1307.0, "V100": 125.0, "V100-PCIE": 112.0, "V100S": 130.0, "Tesla T4": 65.0,
    "RTX 2080 Ti": 53.8,
}
"""Dense bfloat16 products, float16 where there is no bfloat16, as makers state them, by a part of the device's name."""


class Arithmetic(NamedTuple):
    """FLOPs of the forward pass, by slot."""

    vision: float  # of a frame
    connector: float  # of a frame
    backbone: float  # of a row position
    head: float  # of a position with a target

    @classmethod
    def of(cls, model: AuroraModel, keep_ratio: float) -> "Arithmetic":
        """From the shapes of any parts' matrices, for frames of the size that the encoder prepares."""
        patches, removed = merge_schedule(model, keep_ratio)
        backbone, left_out = model.backbone, tables(model)
        products = sum(matrix.numel() for matrix in _matrices(backbone) if matrix not in left_out)
        # a cache that grows is left to the products
        state = sum(tensor.numel() for tensor in backbone.init_state(1).values()) if backbone.constant_state else 0
        return cls(
            _vision_flops(model.vision, patches, removed),
            2.0 * (patches - sum(removed)) * sum(matrix.numel() for matrix in _matrices(model.connector)),
            2.0 * products + STATE_OPERATIONS * state,
            2.0 * backbone.vocab_size * backbone.hidden_size,
        )

    def reading(self, *, frames: float, positions: float, targets: float) -> float:
        """FLOPs of the forward pass over so many of each, as in validation."""
        return frames * (self.vision + self.connector) + positions * self.backbone + targets * self.head

    def training(self, model: AuroraModel, *, frames: float, positions: float, targets: float) -> float:
        """FLOPs of the forward and the backward pass over so many of each.

        A slot that is trained takes three times its forward pass; one that only hands gradients on two; one before
        everything that is trained one.
        """
        passes, before = {}, False
        for slot in WEIGHTED_SLOTS:
            learns = _learns(getattr(model, slot))
            before = before or learns
            passes[slot] = 1 + before + learns
        return (frames * (passes["vision"] * self.vision + passes["connector"] * self.connector)
                + passes["backbone"] * (positions * self.backbone + targets * self.head))


def merge_schedule(model: AuroraModel, keep_ratio: float) -> tuple[int, tuple[int, ...]]:
    """Patches of a frame of the size that the encoder prepares, and the tokens that each block removes."""
    prepare, depth = model.vision.prepare, model.vision.depth
    patches = prepare.patches(prepare.size, prepare.size)
    return patches, model.merge.schedule(patches, depth, model.merge.keep(patches, depth, keep_ratio))


def _vision_flops(vision: VisionEncoder, patches: int, removed: tuple[int, ...]) -> float:
    inside = {module for block in blocks_of(vision) for module in block.modules()}
    embedding = sum(module.weight.numel() for module in vision.modules()
                    if isinstance(module, nn.Linear | nn.Conv2d) and module not in inside)
    flops, tokens = 2.0 * patches * embedding, patches
    for block, remove in zip(blocks_of(vision), removed, strict=False):
        # attention reads what enters, the MLP what remains
        products = sum(matrix.numel() for matrix in _matrices(block))
        flops += 2.0 * products * (tokens - remove / 2) + 4.0 * tokens**2 * vision.width
        tokens -= remove
    return flops


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from filter(is_matrix, module.parameters())


def peak_flops(device: torch.device, given: float | None = None) -> float | None:
    """FLOP/s of a device: `given` TFLOP/s, or what the maker of a known GPU states for 16 bits; None elsewhere."""
    if given is not None:
        return given * 1e12
    return named_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def named_peak(name: str) -> float | None:
    """The same by the name of a device."""
    known = [part for part in PEAK_TFLOPS if part in name]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None


# ---- memory, hours, cost ---------------------------------------------------------------------------------------

BACKBONE_NUMBERS, VISION_NUMBERS = 37, 17
"""Numbers that one block keeps for its backward pass, per position and width: of RWKV-6 (RWKV-7 40, Mamba-2 60) and of
SigLIP, whose attention keeps no scores."""
MIXED_BYTES = 2.7
"""Of such a number where products are narrow and norms, residuals and decays are not: RWKV-6 has 2.6, RWKV-7 2.8."""
OVERHEAD = 3 << 29
"""Bytes that a GPU process holds before there is a model."""
RECOMPUTED = 4 / 3
"""Arithmetic when every block's forward pass is made twice."""
SPARE = 0.95


class Memory(NamedTuple):
    """Bytes of one device."""

    weights: float
    gradients: float
    optimizer: float  # AdamW's moments, and the average of the weights where there is one
    gathered: float  # whole weights and gradients of the blocks at work
    activations: float
    overhead: float

    @property
    def total(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Hardware:
    """What a stage is to be trained on."""

    devices: int
    memory: float  # bytes of each
    peak: float  # FLOP/s of each
    used: float = 0.4  # share of the peak that is reached
    price: float | None = None  # of a device and hour


class Reads(NamedTuple):
    """How much is read."""

    frames: float
    positions: float  # of rows
    targets: float  # positions whose next token is predicted


class Cost(NamedTuple):
    """Of a whole stage."""

    flops: float  # that it cannot do without
    hours: float
    price: float | None


def memory(
    model: AuroraModel, options: TrainerOptions, *, keep_ratio: float, row_tokens: int, row_frames: int, devices: int,
    per_node: int, average: bool = False,
) -> Memory:
    """The memory of a device; `model` says what learns and may stand on the meta device."""
    in_hybrid = options.shard_size or min(devices, per_node)
    sharded = {"fsdp": devices, "fsdp_hybrid": in_hybrid}.get(options.strategy, 1)
    whole, learned, average_bytes = _bytes(model, average)
    gathered = _gathered(model, whole) if options.reshard_after_forward else float(whole)
    here = 0.0 if options.cpu_offload else 1.0
    # of a row, that a process learns from at once
    pieces = 1 if options.backprop_tokens is None else -(-row_tokens // options.backprop_tokens)
    share = 1 / (pieces * options.sequence_parallel)
    return Memory(
        weights=here * whole / sharded,
        gradients=learned if options.defer_gradient_sync else here * learned / sharded,
        optimizer=here * (2 * learned + average_bytes) / sharded,
        gathered=gathered / (2 if options.precision == "bf16-gathered" else 1) if sharded > 1 else 0.0,
        activations=_activations(model, options, keep_ratio, int(share * row_tokens), math.ceil(share * row_frames)),
        overhead=OVERHEAD,
    )


def disk(model: AuroraModel, *, average: bool = False) -> int:
    """Bytes that a stage has on disk at most: checkpoints of what learns with AdamW's moments, and with the average of
    the weights where there is one; and its model twice."""
    whole, learned, average_bytes = _bytes(model, average)
    return (3 * learned + average_bytes) * (KEPT_CHECKPOINTS + 1) + 2 * whole


def _bytes(model: AuroraModel, average: bool) -> tuple[int, int, int]:
    """Of all weights, of those that learn, and of the average of these where there is one."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return (sum(parameter.nbytes for parameter in model.parameters()), sum(parameter.nbytes for parameter in learned),
            4 * sum(parameter.numel() for parameter in learned) if average else 0)


def cost(
    model: AuroraModel, options: TrainerOptions, hardware: Hardware, *, keep_ratio: float, learned: Reads,
    validated: Reads,
) -> Cost:
    """What a stage takes that learns from so much and is validated on so much, of all times together."""
    each = Arithmetic.of(model, keep_ratio)
    learning = each.training(model, **learned._asdict())
    validating = each.reading(**validated._asdict())
    flops = learning + validating
    done = learning * (RECOMPUTED if options.activation_checkpointing == "block" else 1.0) + validating
    hours = done / (hardware.devices * hardware.peak * hardware.used) / 3600
    return Cost(flops, hours, None if hardware.price is None else hours * hardware.devices * hardware.price)


def overrides_that_fit(
    model: AuroraModel, options: TrainerOptions, available: float, *, keep_ratio: float, row_tokens: int,
    row_frames: int, devices: int, per_node: int, average: bool = False,
) -> list[str] | None:
    """The fewest of some overrides with which a stage has room on devices of so many bytes, those that cost least
    tried first; None where all of them together do not suffice. The rest is as in `memory`."""
    known: list[dict[str, Any]] = [{"strategy": "fsdp"}] if devices > 1 and options.strategy in ("auto", "ddp") else []
    known += [{"activation_checkpointing": "block"}]
    known += [{"row_tokens": row_tokens // part, "row_frames": max(1, row_frames // part)} for part in (2, 4, 8)]
    if devices > 1:
        known += [{"cpu_offload": True}]

    def total(chosen: Sequence[Mapping[str, Any]]) -> float:
        found = {key: value for one in chosen for key, value in one.items()}
        rows = {"row_tokens": found.pop("row_tokens", row_tokens), "row_frames": found.pop("row_frames", row_frames)}
        try:
            changed = replace(options, **found)
        except AuroraError:  # such as offloading without sharding, or to a CPU
            return math.inf
        return memory(model, changed, keep_ratio=keep_ratio, devices=devices, per_node=per_node, average=average,
                      **rows).total

    chosen: list[dict[str, Any]] = []
    for one in known:
        if total(chosen) > SPARE * available:
            chosen.append(one)
    if total(chosen) > SPARE * available:
        return None
    for one in list(chosen):  # what came first may not be needed beside what came later
        others = [other for other in chosen if other is not one]
        chosen = others if total(others) <= SPARE * available else chosen
    merged = {key: value for one in chosen for key, value in one.items()}
    return [f"{'data' if key.startswith('row_') else 'trainer'}.{key}={str(value).lower()}"
            for key, value in merged.items()]


def require_fit(needed: Memory, available: float, stage: str, overrides: Sequence[str] | None = None) -> None:
    """AuroraError when a device has no room for a stage, with what takes it and the overrides that fit."""
    if needed.total <= SPARE * available:
        return
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in needed._asdict().items())
    raise AuroraError(
        f"stage {stage!r} needs about {needed.total / 2**30:.1f} GiB on each device ({parts}), which has "
        f"{available / 2**30:.1f}: {way_to_fit(overrides)}; trainer.check_memory=false tries it all the same")


def way_to_fit(overrides: Sequence[str] | None) -> str:
    """What to do where a stage does not fit."""
    return (f"it fits with {' '.join(overrides)}" if overrides else "take more devices with trainer=fsdp, "
            "trainer.precision=bf16-true, fewer trained slots, or adapters")


def _gathered(model: AuroraModel, whole: int) -> float:
    """The embedding and the head, and two blocks: one at work, one that is fetched; their gradients beside them."""
    units = [sum(parameter.nbytes for parameter in block.parameters()) for block in blocks(model)]
    return (whole - sum(units)) * (1 + _learns(model.backbone)) + 3.0 * max(units, default=0)


def _activations(
    model: AuroraModel, options: TrainerOptions, keep_ratio: float, row_tokens: int, row_frames: int
) -> float:
    mixed = options.precision.endswith("-mixed")
    size = MIXED_BYTES if mixed else 4 if options.precision == "32-true" else 2
    vision, (tokens, removed) = model.vision, merge_schedule(model, keep_ratio)
    seen = [row_frames * (tokens - sum(removed[:number])) * vision.width for number in range(vision.depth)]
    read = [row_tokens * model.backbone.hidden_size for _ in blocks_of(model.backbone)]
    learns = _learns(vision), _learns(vision) or _learns(model.connector) or _learns(model.backbone)
    again = options.activation_checkpointing == "block"
    numbers = (_kept(seen, VISION_NUMBERS, learns=learns[0], again=again)
               + _kept(read, BACKBONE_NUMBERS, learns=learns[1], again=again))
    # products keep their narrow copies of weights for the backward pass, whole ones of sharded weights too
    keeps = mixed and options.activation_checkpointing == "none"
    copies = sum(parameter.numel() for part, passes in zip((vision, model.backbone), learns, strict=True) if passes
                 for block in blocks_of(part) for parameter in block.parameters())
    return numbers * size + (2.0 * copies if keeps else 0.0) + 3.0 * LOGIT_BYTES


def _kept(widths: list[int], each: int, *, learns: bool, again: bool) -> float:
    """Numbers that a stack of blocks keeps: all of each, or what enters each and all of one."""
    if not widths:
        return 0.0
    if learns and not again:
        return each * sum(widths)
    return int(learns) * sum(widths) + each * max(widths)


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
