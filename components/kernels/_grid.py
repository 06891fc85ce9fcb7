"""Packed rows as a grid of chunks, and the scan that carries states from chunk to chunk.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width, C positions per chunk, N chunks.

Chunks are numbered step by step: first those that open a sequence, then the second chunks of the sequences that have
one, and so on, the longest sequences first. So each step of the scan is one slice, and the sequences that go on are
the front of it.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aurora.errors import AuroraError


class ChunkGrid(NamedTuple):
    """Where each position and head of a packed row stands among N chunks."""

    chunk: int  # C
    heads: int  # H
    widths: tuple[int, ...]  # sequences that are alive at each step; their sum is N
    slot: Tensor  # [T * H] int64: place of each (position, head) among N * H * C
    order: Tensor  # [S] int64: the sequence that each chunk of the first step opens
    last: Tensor  # [S] int64: the chunk that closes each sequence

    @property
    def chunks(self) -> int:
        return sum(self.widths)

    def scatter(self, x: Tensor) -> Tensor:
        """[T, H, K] → [N, H, C, K], zero where a chunk is longer than what is left of its sequence."""
        places = self.chunks * self.heads * self.chunk
        filled = x.new_zeros(places, x.shape[-1]).index_copy_(0, self.slot, x.reshape(-1, x.shape[-1]))
        return filled.view(self.chunks, self.heads, self.chunk, -1)

    def gather(self, x: Tensor) -> Tensor:
        """[N, H, C, K] → [T, H, K]."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.slot).view(-1, self.heads, x.shape[-1])


def sequence_lengths(cu_seqlens: Tensor, positions: int) -> tuple[int, ...]:
    """The lengths of the sequences of a row; AuroraError when they are empty or do not fill it."""
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.dtype is torch.bool:
        raise AuroraError(
            f"cu_seqlens is {list(cu_seqlens.shape)} of {cu_seqlens.dtype}; it has to be [S + 1] integers"
        )
    bounds = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(bounds))
    if not lengths or min(lengths) < 1:
        raise AuroraError(f"cu_seqlens {bounds} holds an empty sequence; every sequence needs a position")
    if bounds[0] != 0 or bounds[-1] != positions:
        raise AuroraError(f"cu_seqlens runs from {bounds[0]} to {bounds[-1]}; the row has positions 0 to {positions}")
    return lengths


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)  # what is remembered from answering has to serve training too
def chunk_grid(lengths: tuple[int, ...], chunk: int, heads: int, device: torch.device) -> ChunkGrid:
    """The grid of sequences of these lengths; remembered, because every layer of a model asks for the same one."""
    length = torch.tensor(lengths)
    chunks = (length + chunk - 1) // chunk  # [S]
    order = torch.argsort(chunks, descending=True, stable=True)
    rank = torch.argsort(order)
    widths = [int((chunks > step).sum()) for step in range(int(chunks.max()))]
    offset = torch.tensor([0, *widths]).cumsum(0)  # [steps + 1]

    sequence = torch.repeat_interleave(torch.arange(len(lengths)), length)  # [T]
    within = torch.arange(len(sequence)) - (length.cumsum(0) - length)[sequence]  # [T]
    place = offset[within // chunk] + rank[sequence]  # [T] chunk
    slot = (place[:, None] * heads + torch.arange(heads)) * chunk + (within % chunk)[:, None]
    return ChunkGrid(
        chunk=chunk,
        heads=heads,
        widths=tuple(widths),
        slot=slot.flatten().to(device),
        order=order.to(device),
        last=(offset[chunks - 1] + rank).to(device),
    )


def scan(decay: Tensor, update: Tensor, initial: Tensor, grid: ChunkGrid) -> tuple[Tensor, Tensor]:
    """The state before every chunk [N, H, K, V] and after every sequence [S, H, K, V], where a chunk turns a state s
    into decay · s + update; `decay` [N, H, K or 1, 1], `update` [N, H, K, V], `initial` [S, H, K, V]. Has gradients to
    all three."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Scan.apply
    return apply(decay, update, initial, grid)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, update: Tensor, initial: Tensor, grid: ChunkGrid) -> tuple[Tensor, Tensor]:
        before = torch.empty_like(update)
        before[: grid.widths[0]] = initial[grid.order]
        start = 0
        for width, alive in pairwise(grid.widths):
            here, there = slice(start, start + alive), slice(start + width, start + width + alive)
            torch.addcmul(update[here], decay[here], before[here], out=before[there])
            start += width
        ctx.save_for_backward(decay, before)
        ctx.grid = grid
        ctx.set_materialize_grads(False)
        last = grid.last
        return before, torch.addcmul(update[last], decay[last], before[last])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_before: Tensor | None, grad_final: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, before = ctx.saved_tensors
        grid: ChunkGrid = ctx.grid
        grad_before = torch.zeros_like(before) if grad_before is None else grad_before.clone()
        grad_after = torch.zeros_like(before)  # [N, H, K, V], of the state after every chunk
        if grad_final is not None:
            grad_after[grid.last] = grad_final
            grad_before[grid.last] += decay[grid.last] * grad_final
        start = grid.chunks
        for alive, width in zip(reversed(grid.widths[1:]), reversed(grid.widths[:-1]), strict=True):
            there = slice(start - alive, start)
            here = slice(start - alive - width, start - width)
            grad_after[here] = grad_before[there]
            grad_before[here].addcmul_(decay[here], grad_before[there])
            start -= alive
        first = grad_before[: len(grid.order)]
        grad_initial = torch.empty_like(first).index_copy_(0, grid.order, first)
        return (grad_after * before).sum_to_size(decay.shape), grad_after, grad_initial, None
