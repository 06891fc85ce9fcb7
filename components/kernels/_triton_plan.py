"""How a row is given to the Triton kernels: its segments, its sizes, what is multiplied in, how many warps.

Shape letters: T packed positions, H heads, K key width, V value width.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ._triton import Segments, interpreted, positions, segments

SHORT = 8
"""Up to this length the recurrence is used."""
BLOCK = 16
"""So many columns or rows of a state one program takes, where nothing else of it is needed."""


class Plan(NamedTuple):
    """One row for the kernels of an operator."""

    parts: Segments
    sizes: tuple[int, int, int, int]  # H, K, V, and the positions of a chunk
    levels: int  # log2 of a chunk
    numbers: tuple[tl.dtype, str, bool]  # what products multiply in, how, and whether sums of decays are exact
    narrow: torch.dtype  # of the states between chunks

    @property
    def segments(self) -> tuple[int]:
        """The grid of the kernels that go through segments."""
        return (len(self.parts) * self.sizes[0],)

    @property
    def chunks(self) -> tuple[int]:
        """The grid of the kernels that take one chunk each."""
        return (len(self.parts.chunks) * self.sizes[0],)

    @property
    def through(self) -> dict[str, Any]:
        """Options of the kernels that go through segments: warps that hold a state and a chunk in their registers,
        and what is read ahead, which for wide numbers does not fit into the shared memory."""
        _, keys, values, _ = self.sizes
        return {"num_warps": max(2, min(8, keys * values // 1024)), "num_stages": 3 if self.levels == 5 else 1}

    @property
    def once(self) -> dict[str, Any]:
        """Options of the kernels that take one chunk each."""
        more = 2 if self.numbers[1] == "tf32x3" else 1
        return {"num_warps": more * self.through["num_warps"], "num_stages": 1}

    def states(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[count, H, K, V], empty."""
        return torch.empty(count, *self.sizes[:3], dtype=dtype, device=self.parts.table.device)


def plan(lengths: tuple[int, ...], v: Tensor, *keys: Tensor, narrow_levels: int = 5) -> Plan:
    """For values [T, H, V] and tensors [T, H, K].

    Chunks have `narrow_levels` in bfloat16 and four in wider numbers, by what fits in the registers. float16 is
    multiplied in tf32, which has its mantissa and cannot overflow, since states are as unbounded as sums of
    products are. For float32 tf32 alone would be 1e-3 off; three products make up for that.
    """
    dtype = reduce(torch.promote_types, (x.dtype for x in (v, *keys)))
    levels = narrow_levels if dtype is torch.bfloat16 else 4
    heads, width = keys[0].shape[1:]
    return Plan(
        parts=segments(lengths, 1 << levels, heads, v.device),
        sizes=(heads, width, v.shape[-1], 1 << levels),
        levels=levels,
        numbers=_numbers(dtype),
        narrow=torch.bfloat16 if dtype is torch.bfloat16 else torch.float32,
    )


def recur(
    kernel: Any, inputs: Sequence[Tensor], state: Tensor, y: Tensor, final: Tensor, lengths: tuple[int, ...]
) -> None:
    """Runs the kernel of a recurrence, which goes through the positions one by one, into y and the final state."""
    sequences, heads, keys, values = state.shape
    step = max(lengths) == 1
    bounds = None if step else positions(lengths, state.device)
    kernel[(sequences * heads * (values // BLOCK),)](
        *inputs, state, y, final, bounds, heads, keys, values, BLOCK, step, num_warps=1
    )


def link(
    kernel: Any, outer: Tensor | None, local: Tensor, through: Tensor, row: Plan, *more: str, blocks: int,
    backward: bool,
) -> Tensor:
    """The states before every segment [G, H, K, V], or their gradients after it, from what each segment does to one:
    `local` is what it adds, `through` what the old state meets. Programs take BLOCK of `blocks` keys or values each."""
    states = torch.empty_like(local)
    kernel[((len(row.parts.bounds) - 1) * row.sizes[0] * (blocks // BLOCK),)](
        outer, local, through, states, row.parts.bounds, *row.sizes[:3], BLOCK, backward, outer is not None, *more
    )
    return states


def _numbers(dtype: torch.dtype) -> tuple[tl.dtype, str, bool]:
    if interpreted():  # its product of bfloat16 is garbage
        return tl.float32, "ieee", True
    if dtype is torch.bfloat16:
        return tl.bfloat16, "ieee", False
    return tl.float32, "tf32" if dtype is torch.float16 else "tf32x3", True
