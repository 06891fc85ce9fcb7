"""What the Triton kernels share: decays between the positions of a chunk, as a tree of halves.

Shape letters: C positions per chunk (a power of two), K key width.

Two positions s < t belong to the level at which the halving of a chunk parts them: blocks of `size` positions, t in the
right one of two neighbours and s in the left. The decay from s to t is then that from s to the middle times that from
the middle to t, two numbers ≤ 1. So products of matrices need no exponent above 0, whatever the decay, and nothing is
a difference of sums: a log-decay's gradient is a sum as well, that of the transposed ones. Five levels make a chunk of
32; the lowest has no decay at all.

Sums of log-decays are products with matrices of zeros and ones, which keeps all of a chunk in one layout. Logarithms
are to the base 2: that is the exponential that the hardware has.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sums(ones: tl.tensor, x: tl.tensor, EXACT: tl.constexpr) -> tl.tensor:
    """[C, K]: x [C, K] float32, |x| < 65,504, summed over the positions that `ones` [C, C] marks.

    x is rounded to float16: of an exponent E that costs exp(E) at most 1e-4 of one, less than rounding to bfloat16
    does. EXACT adds the rest that was rounded off: 22 bits together.
    """
    ones = ones.to(tl.float16)
    high = x.to(tl.float16)
    total = tl.dot(ones, high)
    if EXACT:
        total = tl.dot(ones, (x - high.to(tl.float32)).to(tl.float16), total)
    return total


@triton.jit
def is_right(C: tl.constexpr, size: tl.tensor) -> tl.tensor:
    """[C, 1]: whether a position lies in the right one of two blocks."""
    return (tl.arange(0, C) & size)[:, None] != 0


@triton.jit
def parted(C: tl.constexpr, size: tl.tensor) -> tl.tensor:
    """[C, C]: whether two positions lie in neighbouring blocks of one pair."""
    t = tl.arange(0, C)
    apart = t[:, None] ^ t[None, :]
    return (apart >= size) & (apart < 2 * size)


@triton.jit
def to_middle(C: tl.constexpr, size: tl.tensor) -> tl.tensor:
    """[C, C]: at [t, j] whether j lies between t and the middle of its pair of blocks."""
    t = tl.arange(0, C)
    inside = (t[:, None] ^ t[None, :]) < size
    nearer = ((t[:, None] & size) != 0) == (t[None, :] < t[:, None])
    return inside & nearer & (t[:, None] != t[None, :])


@triton.jit
def from_middle(C: tl.constexpr, size: tl.tensor) -> tl.tensor:
    """[C, C]: at [j, t] what `to_middle` says at [t, j]."""
    t = tl.arange(0, C)
    inside = (t[:, None] ^ t[None, :]) < size
    nearer = ((t[None, :] & size) != 0) == (t[:, None] < t[None, :])
    return inside & nearer & (t[:, None] != t[None, :])


@triton.jit
def before(C: tl.constexpr) -> tl.tensor:
    """[C, C]: at [t, j] whether j comes before t."""
    t = tl.arange(0, C)
    return t[None, :] < t[:, None]


@triton.jit
def after(C: tl.constexpr) -> tl.tensor:
    """[C, C]: at [t, j] whether j comes after t."""
    t = tl.arange(0, C)
    return t[None, :] > t[:, None]
