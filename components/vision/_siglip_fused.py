"""Inference of a small SigLIP on a CPU by our own kernels: the same as its modules compute, in one call.

Small products are over before the interpreter has asked for the next one. In one call it is free for what decodes and
reads meanwhile.

Shape letters: N frames, P patches, W width, F width of the MLP, p patch side.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn

from aurora.interfaces import MergeStrategy, Sorter
from aurora.types import VisualTokens

from ..kernels._native import address, altered, library, missing

EPS = 1e-6  # of SigLIP's layer norms
MOST_WIDTH = 256
"""Weights of wider models do not lie in the caches, and other libraries multiply those faster."""
VISION_KERNELS = ("gelu_tanh", "mean_direction", "match_pairs", "absorb", "reorder")


def fused_read(
    vision: Any, pixels: Tensor, positions: Tensor, merge: MergeStrategy, sort: Sorter, removed: Sequence[int],
    plain: set[type[nn.Module]],
) -> VisualTokens | None:
    """What a Siglip makes of frames [N, 3, h, w] up to its last block, when each block removes as many tokens as
    `removed` says; None where its modules have to compute that, or to say what is wrong.

    `positions` [P, W] is added to the patches; `plain` are the classes of modules whose computation is known.
    """
    if not (_serves(pixels, vision.width) and _knows(merge, sort, removed, len(positions))):
        return None
    side = vision.prepare.patch_size
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    weights = _weights(vision, positions, plain)
    if weights is None or len(vision.blocks) != len(removed) or len(positions) != rows * columns:
        return None
    pixels, frames, kept = pixels.contiguous(), len(pixels), rows * columns - sum(removed)
    sorts = any(removed) and sort.where == "layer"
    by_size = (-1 if getattr(sort, "descending", False) else 1) if sorts else 0
    sizes = (len(removed), vision.width, vision.mlp_width, vision.heads, rows, columns, side, by_size,
             merge.proportional_attention)
    features = torch.empty(frames, kept, vision.width, dtype=torch.float32, device="cpu")
    tokens = VisualTokens(features, features.new_empty(frames, kept),
                          features.new_empty(frames, rows * columns, dtype=torch.int64))
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
        and pixels.ndim == 4 and pixels.shape[1] == 3 and width <= MOST_WIDTH
        and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack() and not torch._C._len_torch_function_stack()
        and missing("attention") is None and library("attention").attention_supported() == 1
        and missing("vision") is None and missing("vit") is None
    )


def _knows(merge: MergeStrategy, sort: Sorter, removed: Sequence[int], tokens: int) -> bool:
    """Whether the kernels merge and sort just as these do, and so many tokens can be removed."""
    if not any(removed):
        return True
    for count in removed:
        if not 0 <= count <= ((tokens + 1) // 2 if tokens > 1 else 0):  # even ones go into odd ones
            return False
        tokens -= count
    return (getattr(merge.match, "compiled_as", None) == "tome"
            and (sort.where == "final" or getattr(sort.order, "compiled_as", None) == "size"))


def _weights(vision: Any, positions: Tensor, plain: set[type[nn.Module]]) -> list[Tensor] | None:
    """The weights in the order of the kernel; None where it cannot read one, or a module may compute something else
    than its class says."""
    width, inner = vision.width, vision.mlp_width
    modules: list[nn.Module] = []
    parts: list[tuple[nn.Module, tuple[int, ...]]] = [(vision.patch, (width, 3 * vision.prepare.patch_size**2))]
    for block in vision.blocks:
        attention, mlp = block.attention, block.mlp
        if attention.heads != vision.heads:
            return None
        modules += [block, attention, mlp]
        parts += [(block.norm_attention, (width,)), (attention.qkv, (3 * width, width)),
                  (attention.out, (width, width)), (block.norm_mlp, (width,)), (mlp.up, (inner, width)),
                  (mlp.down, (width, inner))]
    modules += [part for part, _ in parts]
    if not {type(module) for module in (vision, *modules)} <= plain or altered(modules):
        return None
    weights: list[tuple[Any, tuple[int, ...]]] = []
    for part, shape in parts:
        if getattr(part, "eps", EPS) != EPS:
            return None
        weights += [(part._parameters["weight"], shape), (part._parameters["bias"], shape[:1])]
    weights.insert(2, (positions, (len(positions), width)))  # behind those of the patches
    return [x for x, _ in weights] if all(starmap(_is_readable, weights)) else None


def _is_readable(x: Any, shape: tuple[int, ...]) -> bool:
    return (type(x) in (Tensor, nn.Parameter) and x.shape == shape and x.dtype is torch.float32
            and x.device.type == "cpu" and x.is_contiguous())


@cache
def _kernels() -> ctypes.Array[ctypes.c_void_p]:
    """Where the kernels lie that are called from within."""
    vision = library("vision")
    kernels = [library("attention").attention, *(getattr(vision, name) for name in VISION_KERNELS)]
    return (ctypes.c_void_p * len(kernels))(*(ctypes.cast(kernel, ctypes.c_void_p).value for kernel in kernels))


def _numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
