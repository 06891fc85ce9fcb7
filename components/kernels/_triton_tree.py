"""What the Triton kernels share: decays between the positions of a chunk, as a tree of halves.

Shape letters: C positions per chunk (a power of two), K key width.

Two positions s < t belong to the level at which the halving of a chunk parts them: blocks of `SIZE` positions, t in the
right one of two neighbours and s in the left. The decay from s to t is then that from s to the middle times that from
the middle to t, two numbers ≤ 1. So products of matrices need no exponent above 0, whatever the decay, and nothing is
a difference of sums: a log-decay's gradient is a sum as well, that of the transposed ones. Five levels make a chunk of
32; the lowest has no decay at all.

Sums of log-decays are products with matrices of zeros and ones, which keeps all of a chunk in one layout.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def halves(x: Any) -> Any:
    """[C, K] float32 as the sum of two in float16: 22 bits, what a product with ones needs to be exact to 2e-7.

    |x| stays below 65,504; what is smaller than 3e-8 is lost.
    """
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def sums(ones: Any, high: Any, low: Any) -> Any:
    """[C, K]: what `halves` split, summed over the positions that `ones` [C, C] marks."""
    ones = ones.to(tl.float16)
    return tl.dot(ones, low, tl.dot(ones, high))


@triton.jit
def is_right(C: tl.constexpr, SIZE: tl.constexpr) -> Any:
    """[C, 1]: whether a position lies in the right one of two blocks."""
    return (tl.arange(0, C) & SIZE)[:, None] != 0


@triton.jit
def parted(C: tl.constexpr, SIZE: tl.constexpr) -> Any:
    """[C, C]: whether two positions lie in neighbouring blocks of one pair."""
    t = tl.arange(0, C)
    apart = t[:, None] ^ t[None, :]
    return (apart >= SIZE) & (apart < 2 * SIZE)


@triton.jit
def to_middle(C: tl.constexpr, SIZE: tl.constexpr) -> Any:
    """[C, C]: at [t, j] whether j lies between t and the middle of its pair of blocks."""
    t = tl.arange(0, C)
    inside = (t[:, None] ^ t[None, :]) < SIZE
    nearer = ((t[:, None] & SIZE) != 0) == (t[None, :] < t[:, None])
    return inside & nearer & (t[:, None] != t[None, :])


@triton.jit
def before(C: tl.constexpr) -> Any:
    """[C, C]: at [t, j] whether j comes before t."""
    t = tl.arange(0, C)
    return t[None, :] < t[:, None]


@triton.jit
def after(C: tl.constexpr) -> Any:
    """[C, C]: at [t, j] whether j comes after t."""
    t = tl.arange(0, C)
    return t[None, :] > t[:, None]
