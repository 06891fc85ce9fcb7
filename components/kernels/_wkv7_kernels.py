"""Triton kernels of WKV-7: one program per head and segment, chunk after chunk with the state in registers.

Shape letters: T packed positions, G segments, N chunks, S sequences, H heads, K key width, V value width, C positions
per chunk.

Inside a chunk, u_t = a_t s_{t-1} [V] is what position t reads and b_t writes back. With P and E the decays from the
chunk's start to before a position and from it to the chunk's end, and with decayed products of a, r · exp(w) with b, k
from earlier positions (`_triton_tree`):

    U = (I - AB)⁻¹ (aP s + AK V)      Y = (rP exp w) s + RB U + RK V      s' = exp(sum w) s + (bE)ᵀ U + (kE)ᵀ V

The inverse of I - AB comes level by level as well: where blocks of one size are inverted, those of twice that size are
X + X AB' X, AB' being what the level adds. That is block substitution, as stable as going row by row; powers of AB
would cancel when keys repeat.

Segments, chunks and `DOT` are as in `_wkv6_kernels`.
"""

import triton
import triton.language as tl

from ._triton_tree import LOG2_E, after, before, is_right, parted, sums, to_middle
from ._wkv6_kernels import wide


@triton.jit
def log_decay(w: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """log2 of exp(w), 0 where nothing is kept."""
    # sums take up to 65,504; exp(-1000) is 0 in every format
    return tl.maximum(tl.load(w, mask=keep, other=0).to(tl.float32), -1000.0) * LOG2_E


@triton.jit
def products(
    query: tl.tensor, key: tl.tensor, read: tl.tensor, write: tl.tensor, lw: tl.tensor,
    C: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    INVERSE: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
) -> tl.tensor:
    """(I - AB)⁻¹, and the products with earlier positions AK if KEYS, RB if QUERIES, RK if both, all [C, C].

    `query` is r · exp(w), `read` is a, `write` is b, all [C, K]; the inverse is multiplied as INVERSE says.
    """
    t = tl.arange(0, C)
    inverse = tl.where(t[:, None] == t[None, :], 1.0, 0.0)
    read_key, query_write, query_key = inverse * 0.0, inverse * 0.0, inverse * 0.0
    for level in range(0, LEVELS):  # not unrolled: all levels at once would not fit in the registers
        size = 1 << level
        right = is_right(C, size)
        pair = parted(C, size) & before(C)
        decay = tl.exp2(sums(to_middle(C, size), lw, EXACT))
        x = (tl.where(right, read, write) * decay).to(DOT)
        z = (tl.where(right, query, key) * decay).to(DOT)
        added = tl.where(pair, tl.dot(x, tl.trans(x), input_precision=PRECISION), 0.0)
        added = tl.dot(inverse, added, input_precision=INVERSE)
        inverse = tl.dot(added, inverse, inverse, input_precision=INVERSE)
        if KEYS:
            read_key = tl.where(pair, tl.dot(x, tl.trans(z), input_precision=PRECISION), read_key)
        if QUERIES:
            query_write = tl.where(pair, tl.dot(z, tl.trans(x), input_precision=PRECISION), query_write)
        if KEYS and QUERIES:
            query_key = tl.where(pair, tl.dot(z, tl.trans(z), input_precision=PRECISION), query_key)
    return inverse, read_key, query_write, query_key


@triton.jit
def forward(
    r: tl.tensor, w: tl.tensor, k: tl.tensor, v: tl.tensor, a: tl.tensor, b: tl.tensor,
    start: tl.tensor, y: tl.tensor, end: tl.tensor, states: tl.tensor, u: tl.tensor, segments: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    OUTPUT: tl.constexpr, STORES: tl.constexpr, IDENTITY: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr, INVERSE: tl.constexpr,
) -> None:
    """Carries a state through every segment.

    OUTPUT: from `start` [G, H, K, V], y [T, H, V] and, in `end` [S, H, K, V], the states after the sequences. STORES:
    from `start`, the states before every chunk in `states` [N, H, K, V] and U in `u` [T, H, V]. Otherwise from zeros,
    or IDENTITY: from the identity and without values (V is then K), the states after every segment in `end`
    [G, H, K, V].
    """
    segment, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(segments + 5 * segment), wide(segments + 5 * segment + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = keys[:, None] * V + values[None, :]
    here = (segment * H + head).to(tl.int64)
    if OUTPUT or STORES:
        s = tl.load(start + here * (K * V) + tile)
    elif IDENTITY:
        s = tl.where(keys[:, None] == values[None, :], 1.0, 0.0)
    else:
        s = tl.zeros([K, V], tl.float32)
    place = (wide(segments + 5 * segment + 2) * H + head) * (K * V)
    for chunk in range(0, tl.cdiv(last - first, C)):
        if STORES:
            tl.store(states + place + chunk * (H * K * V) + tile, s.to(states.dtype.element_ty))
        position = first + chunk * C
        offset = position * H + head
        keep = (position + rows < last)[:, None]
        lw = log_decay(w + offset * K + at_keys, keep)
        key = tl.load(k + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        read = tl.load(a + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        write = tl.load(b + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        query = key
        if OUTPUT:
            plain = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
            query = plain * tl.exp2(lw)
        inverse, read_key, query_write, query_key = products(
            query, key, read, write, lw, C, LEVELS, DOT, PRECISION, EXACT, INVERSE, not IDENTITY, OUTPUT
        )
        decay = tl.exp2(sums(before(C), lw, EXACT))
        used = tl.dot((read * decay).to(DOT), s.to(DOT), input_precision=PRECISION)
        if not IDENTITY:
            value = tl.load(v + offset * V + at_values, mask=keep, other=0).to(DOT)
            used = tl.dot(read_key.to(DOT), value, used, input_precision=PRECISION)
        used = tl.dot(inverse, used, input_precision=INVERSE).to(DOT)
        if STORES:
            tl.store(u + offset * V + at_values, used.to(u.dtype.element_ty), mask=keep)
        if OUTPUT:
            # a position reads what it has written itself, without a decay
            same = rows[:, None] == rows[None, :]
            query_write = tl.where(same, tl.sum(plain * write, axis=1)[:, None], query_write).to(DOT)
            query_key = tl.where(same, tl.sum(plain * key, axis=1)[:, None], query_key).to(DOT)
            out = tl.dot((query * decay).to(DOT), s.to(DOT), input_precision=PRECISION)
            out = tl.dot(query_write, used, out, input_precision=PRECISION)
            out = tl.dot(query_key, value, out, input_precision=PRECISION)
            tl.store(y + offset * V + at_values, out.to(y.dtype.element_ty), mask=keep)
        decay = tl.exp2(sums(after(C), lw, EXACT))
        s = s * tl.exp2(tl.sum(lw, axis=0))[:, None]
        s = tl.dot(tl.trans((write * decay).to(DOT)), used, s, input_precision=PRECISION)
        if not IDENTITY:
            s = tl.dot(tl.trans((key * decay).to(DOT)), value, s, input_precision=PRECISION)
    if OUTPUT:
        sequence = wide(segments + 5 * segment + 4)
        if sequence >= 0:
            tl.store(end + (sequence * H + head) * (K * V) + tile, s)
    elif not STORES:
        tl.store(end + here * (K * V) + tile, s)


@triton.jit
def link(
    outer: tl.tensor, local: tl.tensor, maps: tl.tensor, states: tl.tensor, bounds: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr, GIVEN: tl.constexpr, INVERSE: tl.constexpr,
) -> None:
    """The states `states` [G, H, K, V] before every segment, where one turns s into `maps` [G, H, K, K] s + `local`.

    BACKWARD: the gradients after every segment, by the transposed maps. One program per sequence, head and COLUMNS of
    the values; from `outer` [S, H, K, V] if GIVEN; `bounds` [S + 1] counts the segments.
    """
    blocks: tl.constexpr = V // COLUMNS
    sequence, head = tl.program_id(0) // (H * blocks), tl.program_id(0) // blocks % H
    keys, values = tl.arange(0, K), tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    tile = keys[:, None] * V + values[None, :]
    square = keys[None, :] * K + keys[:, None] if BACKWARD else keys[:, None] * K + keys[None, :]
    first, last = wide(bounds + sequence), wide(bounds + sequence + 1)
    if GIVEN:
        s = tl.load(outer + (sequence * H + head).to(tl.int64) * (K * V) + tile)
    else:
        s = tl.zeros([K, COLUMNS], tl.float32)
    for step in range(0, last - first):
        segment = last - 1 - step if BACKWARD else first + step
        here = segment * H + head
        tl.store(states + here * (K * V) + tile, s)
        s = tl.dot(tl.load(maps + here * (K * K) + square), s, input_precision=INVERSE)
        s += tl.load(local + here * (K * V) + tile)


@triton.jit
def recurrent(
    r: tl.tensor, w: tl.tensor, k: tl.tensor, v: tl.tensor, a: tl.tensor, b: tl.tensor,
    start: tl.tensor, y: tl.tensor, final: tl.tensor, bounds: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
) -> None:
    """Position after position, for short sequences: one program per sequence, head and COLUMNS of the values.

    `bounds` [S + 1] counts the positions; STEP: every sequence has one.
    """
    blocks: tl.constexpr = V // COLUMNS
    sequence, head = tl.program_id(0) // (H * blocks), tl.program_id(0) // blocks % H
    keys, values = tl.arange(0, K), tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    tile = (sequence * H + head).to(tl.int64) * (K * V) + keys[:, None] * V + values[None, :]
    s = tl.load(start + tile)
    if STEP:
        first, last = sequence.to(tl.int64), sequence.to(tl.int64) + 1
    else:
        first, last = wide(bounds + sequence), wide(bounds + sequence + 1)
    for position in range(first, last):
        offset = position * H + head
        at = offset * K + keys
        value = tl.load(v + offset * V + values).to(tl.float32)
        used = tl.sum(tl.load(a + at).to(tl.float32)[:, None] * s, axis=0)
        s *= tl.exp2(log_decay(w + at, True))[:, None]
        s += tl.load(b + at).to(tl.float32)[:, None] * used[None, :]
        s += tl.load(k + at).to(tl.float32)[:, None] * value[None, :]
        out = tl.sum(tl.load(r + at).to(tl.float32)[:, None] * s, axis=0)
        tl.store(y + offset * V + values, out.to(y.dtype.element_ty))
    tl.store(final + tile, s)
