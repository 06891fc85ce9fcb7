"""What the forms for GPUs share outside their kernels: whether they can run, and how a row is cut among programs.

Imports neither Triton nor flash-linear-attention: the operators look here first, and a form's file is imported when it
is called.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

HEAD_SIZES = (16, 32, 64, 128)
SHORTEST_SEGMENT = 256
PROGRAMS_PER_PROCESSOR = 2
"""How many programs a multiprocessor holds at once, by the registers that they take."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device: TRITON_INTERPRET=1 before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unfit(k: Tensor, v: Tensor) -> str | None:
    """Why the Triton forms cannot take keys [T, H, K] and values [T, H, V] like these."""
    if not _installed("triton"):
        return "needs Triton, pip install triton"
    if not interpreted():
        if k.device.type != "cuda":
            return f"takes tensors on cuda, not on {k.device.type}"
        if not _multiplies_bfloat16(k.device):
            return "needs an NVIDIA GPU of compute capability 8.0 or above"
    sizes = k.shape[-1], v.shape[-1]
    if not set(sizes) <= set(HEAD_SIZES):
        return f"takes heads of {', '.join(map(str, HEAD_SIZES))}, not of {sizes[0]} × {sizes[1]}"
    return _no_double(k, v)


def fla_unfit(k: Tensor, v: Tensor) -> str | None:
    """Why flash-linear-attention's operators cannot."""
    if not _installed("fla"):
        return "needs flash-linear-attention, pip install 'auroralong[fla]'"
    if k.device.type != "cuda":
        return f"takes tensors on cuda, not on {k.device.type}"
    if k.shape[-1] > 256:
        return f"takes heads of at most 256, not of {k.shape[-1]}"
    return _no_double(k, v)


def _no_double(k: Tensor, v: Tensor) -> str | None:
    wrong = {x.dtype for x in (k, v)} - {torch.bfloat16, torch.float16, torch.float32}
    return f"takes bfloat16, float16 and float32, not {str(wrong.pop()).removeprefix('torch.')}" if wrong else None


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launches go to the device of x, which may not be the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


@cache
def _multiplies_bfloat16(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def late(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of a sibling module that imports Triton, which is imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f".{module}", __package__), name)(*arguments)

    return call


class Segments(NamedTuple):
    """Pieces of the sequences of a row, each for one program per head; none reaches over a sequence's end."""

    table: Tensor  # [G, 5] int32: first position, end, first chunk, sequence that it opens, that it closes (or -1)
    bounds: Tensor  # [S + 1] int32: where each sequence's segments begin
    chunks: Tensor  # [N, 2] int32: first position and end of every segment's chunks

    def __len__(self) -> int:
        return len(self.table)

    @property
    def split(self) -> bool:
        """Whether a sequence has more than one."""
        return len(self.table) > len(self.bounds) - 1


@lru_cache(maxsize=32)
def segments(lengths: tuple[int, ...], chunk: int, heads: int, device: torch.device) -> Segments:
    """As few segments as fill the device: a sequence that is cut has to be read once more.

    Remembered, because every layer of a model asks for the same ones.
    """
    wanted = max(sum(lengths) * heads / (PROGRAMS_PER_PROCESSOR * _processors(device)), SHORTEST_SEGMENT)
    rows: list[tuple[int, int, int, int, int]] = []
    bounds = [0]
    chunks: list[tuple[int, int]] = []
    start = 0
    for sequence, length in enumerate(lengths):
        pieces = max(round(length / wanted), 1)
        size = -(-length // (pieces * chunk)) * chunk
        for begin in range(0, length, size):
            end = min(begin + size, length)
            opens, closes = sequence if begin == 0 else -1, sequence if end == length else -1
            rows.append((start + begin, start + end, len(chunks), opens, closes))
            chunks += [(start + at, start + min(at + chunk, end)) for at in range(begin, end, chunk)]
        start += length
        bounds.append(len(rows))
    return Segments(*(torch.tensor(x, dtype=torch.int32).to(device) for x in (rows, bounds, chunks)))


@lru_cache(maxsize=32)
def positions(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """[S + 1] int32: where the sequences begin."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
