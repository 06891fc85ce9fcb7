"""Inference of a small SigLIP on a CPU by our own kernels: the same as its blocks compute, in one call.

Small products are over before the interpreter has asked for the next one. In one call the interpreter is free for what
decodes and reads meanwhile.

Shape letters: N frames, P patches, W width.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from aurora.interfaces import MergeStrategy, Sorter, compiled_as
from aurora.types import VisualTokens

from ..kernels._native import address, library, missing

MOST_WIDTH = 256
"""Weights of wider models do not lie in the caches, and other libraries multiply those faster."""
EPS = 1e-6  # of SigLIP's layer norms
VISION_KERNELS = ("gelu_tanh", "mean_direction", "match_pairs", "absorb", "reorder")


def fused_read(
    vision: Any, pixels: Tensor, positions: Tensor, merge: MergeStrategy, sort: Sorter, removed: Sequence[int],
    plain: set[type[nn.Module]],
) -> VisualTokens | None:
    """What a Siglip makes of frames [N, 3, h, w] up to its last block, when each block removes as many tokens as
    `removed` says; None where its modules have to compute that.

    `positions` [P, W] is added to the patches; `plain` are the classes of modules whose computation is known.
    """
    if not (_serves(pixels, vision.width) and _knows(merge, sort, removed)):
        return None
    weights = _weights(vision, positions, plain)
    if weights is None:
        return None
    pixels = pixels.contiguous()
    frames, side = len(pixels), vision.prepare.patch_size
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    kept = rows * columns - sum(removed)
    sorts = any(removed) and sort.where == "layer"
    by_size = (-1 if getattr(sort, "descending", False) else 1) if sorts else 0
    sizes = (len(removed), vision.width, vision.mlp_width, vision.heads, rows, columns, side, by_size,
             merge.proportional_attention)
    tokens = VisualTokens(torch.empty(frames, kept, vision.width), torch.empty(frames, kept),
                          torch.empty(frames, rows * columns, dtype=torch.int64))
    if not library("vit").vit_read(
        _numbers(sizes), EPS, (ctypes.c_void_p * len(weights))(*map(address, weights)), _kernels(), _numbers(removed),
        *map(address, (pixels, *tokens)), frames, torch.get_num_threads(),
    ):
        raise IndexError(f"a merge of {rows * columns} patches into {kept} tokens names one that does not exist")
    return tokens


def _serves(pixels: Tensor, width: int) -> bool:
    """Whether the kernels take these, and nobody wants to see what happens in between."""
    return (
        type(pixels) is Tensor and pixels.device.type == "cpu" and pixels.dtype is torch.uint8
        and width <= MOST_WIDTH and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()
        and all(missing(name) is None for name in ("vit", "vision", "attention"))
        and library("attention").attention_supported() == 1
    )


def _knows(merge: MergeStrategy, sort: Sorter, removed: Sequence[int]) -> bool:
    """Whether the kernels merge and sort just as these do."""
    if not any(removed):
        return True
    return compiled_as(merge) == "tome" and (sort.where == "final" or compiled_as(sort) == "size")


def _weights(vision: Any, positions: Tensor, plain: set[type[nn.Module]]) -> list[Tensor] | None:
    """The weights in the order of the kernel; None where it cannot read one, or a module may compute something else
    than its class says."""
    modules, parts = [], [vision.patch]
    for block in vision.blocks:
        attention, mlp = block.attention, block.mlp
        modules += [block, attention, mlp]
        parts += [block.norm_attention, attention.qkv, attention.out, block.norm_mlp, mlp.up, mlp.down]
    for module in (*modules, *parts):
        if (type(module) not in plain or module._forward_hooks or module._forward_pre_hooks
                or "forward" in vars(module)):
            return None
    weights = [part._parameters[name] for part in parts for name in ("weight", "bias")]
    weights.insert(2, positions)
    for x in weights:
        if (type(x) not in (Tensor, nn.Parameter) or x.dtype is not torch.float32 or x.device.type != "cpu"
                or not x.is_contiguous()):
            return None
    return weights


@cache
def _kernels() -> ctypes.Array[ctypes.c_void_p]:
    """Where the kernels lie that are called from within."""
    vision = library("vision")
    kernels = [library("attention").attention, *(getattr(vision, name) for name in VISION_KERNELS)]
    return (ctypes.c_void_p * len(kernels))(*(ctypes.cast(kernel, ctypes.c_void_p).value for kernel in kernels))


def _numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
