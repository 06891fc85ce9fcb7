"""Triton kernels of WKV-6: one program per head and segment, chunk after chunk with the state in registers.

Shape letters: T packed positions, G segments, N chunks, S sequences, H heads, K key width, V value width, C positions
per chunk.

A segment is a piece of one sequence, `segments` [G, 5] int32: its first position, its end, its first chunk, the
sequence that it opens and the one that it closes (or -1). `DOT` is what matrix products multiply in.
"""

import triton
import triton.language as tl

from ._triton_tree import LOG2_E, after, before, from_middle, is_right, parted, sums, to_middle


@triton.jit
def wide(pointer: tl.tensor) -> tl.tensor:
    # what is counted from these passes 2^31 elements in a row of a million positions
    return tl.load(pointer).to(tl.int64)


@triton.jit
def log_decay(w: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """log2 of exp(-exp(w)), 0 where nothing is kept."""
    # exp(-exp(10)) is 0 in every format
    raw = tl.minimum(tl.load(w, mask=keep, other=float("-inf")).to(tl.float32), 10.0)
    return tl.exp2(raw * LOG2_E) * -LOG2_E


@triton.jit
def advance(
    a: tl.tensor, x: tl.tensor, w: tl.tensor, start: tl.tensor,
    states: tl.tensor, end: tl.tensor, total: tl.tensor, segments: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BACKWARD: tl.constexpr, STARTS: tl.constexpr, STORES: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
) -> None:
    """Carries a state through every segment: s → exp(sum lw) s + Σ_t a_tᵀ x_t, each decayed to the chunk's end.

    BACKWARD goes from the last chunk to the first and decays to the chunk's start: the state is then a gradient.
    STARTS: from `start` [G, H, K, V], otherwise from zeros. STORES: writes the state before every chunk to `states`
    [N, H, K, V], and when BACKWARD that at the start of every sequence to `end` [S, H, K, V]; otherwise that at the end
    of every segment to `end` [G, H, K, V] and its sum of log-decays to `total` [G, H, K].
    """
    segment, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(segments + 5 * segment), wide(segments + 5 * segment + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = keys[:, None] * V + values[None, :]
    here = (segment * H + head).to(tl.int64)
    s = tl.load(start + here * (K * V) + tile) if STARTS else tl.zeros([K, V], tl.float32)
    passed = tl.zeros([K], tl.float32)
    chunks = tl.cdiv(last - first, C)
    place = (wide(segments + 5 * segment + 2) * H + head) * (K * V)
    for step in range(0, chunks):
        chunk = chunks - 1 - step if BACKWARD else step
        if STORES:
            tl.store(states + place + chunk * (H * K * V) + tile, s.to(states.dtype.element_ty))
        position = first + chunk * C
        offset = position * H + head
        keep = (position + rows < last)[:, None]
        lw = log_decay(w + offset * K + at_keys, keep)
        ones = before(C) if BACKWARD else after(C)
        scaled = tl.load(a + offset * K + at_keys, mask=keep, other=0).to(tl.float32) * tl.exp2(sums(ones, lw, EXACT))
        inner = tl.load(x + offset * V + at_values, mask=keep, other=0).to(DOT)
        through = tl.sum(lw, axis=0)
        s = s * tl.exp2(through)[:, None]
        s = tl.dot(tl.trans(scaled.to(DOT)), inner, s, input_precision=PRECISION)
        passed += through
    if not STORES:
        tl.store(end + here * (K * V) + tile, s)
        tl.store(total + here * K + keys, passed)
    elif BACKWARD:
        sequence = wide(segments + 5 * segment + 3)
        if sequence >= 0:
            tl.store(end + (sequence * H + head) * (K * V) + tile, s)


@triton.jit
def forward(
    r: tl.tensor, k: tl.tensor, v: tl.tensor, w: tl.tensor, bonus: tl.tensor,
    start: tl.tensor, y: tl.tensor, final: tl.tensor, segments: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
) -> None:
    """y [T, H, V] from the state before every segment `start` [G, H, K, V], and the states `final` [S, H, K, V]."""
    segment, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(segments + 5 * segment), wide(segments + 5 * segment + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = keys[:, None] * V + values[None, :]
    s = tl.load(start + (segment * H + head).to(tl.int64) * (K * V) + tile)
    u = tl.load(bonus + head * K + keys).to(tl.float32)[None, :]
    for position in range(first, last, C):
        offset = position * H + head
        keep = (position + rows < last)[:, None]
        lw = log_decay(w + offset * K + at_keys, keep)
        query = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        key = tl.load(k + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        value = tl.load(v + offset * V + at_values, mask=keep, other=0)

        scores = tl.zeros([C, C], tl.float32)
        for level in tl.static_range(LEVELS):
            z = tl.where(is_right(C, 1 << level), query, key)
            if level > 0:
                z *= tl.exp2(sums(to_middle(C, 1 << level), lw, EXACT))
            pairs = tl.dot(z.to(DOT), tl.trans(z.to(DOT)), input_precision=PRECISION)
            scores = tl.where(parted(C, 1 << level), pairs, scores)
        scores = tl.where(before(C), scores, 0.0)

        queries = query * tl.exp2(sums(before(C), lw, EXACT))
        out = tl.sum(query * u * key, axis=1)[:, None] * value.to(tl.float32)
        out = tl.dot(queries.to(DOT), s.to(DOT), out, input_precision=PRECISION)
        out = tl.dot(scores.to(DOT), value.to(DOT), out, input_precision=PRECISION)
        tl.store(y + offset * V + at_values, out.to(y.dtype.element_ty), mask=keep)

        ends = key * tl.exp2(sums(after(C), lw, EXACT))
        s = s * tl.exp2(tl.sum(lw, axis=0))[:, None]
        s = tl.dot(tl.trans(ends.to(DOT)), value.to(DOT), s, input_precision=PRECISION)
    sequence = wide(segments + 5 * segment + 4)
    if sequence >= 0:
        tl.store(final + (sequence * H + head) * (K * V) + tile, s)


@triton.jit
def backward(
    r: tl.tensor, k: tl.tensor, v: tl.tensor, w: tl.tensor, bonus: tl.tensor, dy: tl.tensor,
    states: tl.tensor, dstates: tl.tensor, dr: tl.tensor, dk: tl.tensor, dv: tl.tensor, dw: tl.tensor,
    dbonus: tl.tensor, chunks: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
) -> None:
    """All gradients of one chunk, from the state before it and the gradient of that after it, both [N, H, K, V].

    `chunks` [N, 2] int32: first position and end; `dbonus` [N, H, K]; the others as their inputs.
    """
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(chunks + 2 * chunk), wide(chunks + 2 * chunk + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = tl.program_id(0).to(tl.int64) * (K * V) + keys[:, None] * V + values[None, :]
    offset = first * H + head
    keep = (first + rows < last)[:, None]
    lw = log_decay(w + offset * K + at_keys, keep)
    query = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    key = tl.load(k + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    value = tl.load(v + offset * V + at_values, mask=keep, other=0).to(DOT)
    dout = tl.load(dy + offset * V + at_values, mask=keep, other=0).to(DOT)
    s, ds = tl.load(states + tile).to(DOT), tl.load(dstates + tile).to(DOT)

    # what went through the states: from before the chunk to its positions, and from them to after it
    decay = tl.exp2(sums(before(C), lw, EXACT))
    query_gradient = tl.dot(dout, tl.trans(s), input_precision=PRECISION) * decay
    decay = tl.exp2(sums(after(C), lw, EXACT))
    key_gradient = tl.dot(value, tl.trans(ds), input_precision=PRECISION) * decay
    value_gradient = tl.dot((key * decay).to(DOT), ds, input_precision=PRECISION)
    log_gradient = tl.dot(after(C).to(DOT), (query * query_gradient).to(DOT), input_precision=PRECISION)
    log_gradient = tl.dot(before(C).to(DOT), (key * key_gradient).to(DOT), log_gradient, input_precision=PRECISION)
    through = tl.sum(ds.to(tl.float32) * s.to(tl.float32), axis=1)
    log_gradient += (tl.exp2(tl.sum(lw, axis=0)) * through)[None, :]

    # what went from position to position; the gradients of the scores are mirrored to above the diagonal
    mirrored = tl.where(
        before(C),
        tl.dot(dout, tl.trans(value), input_precision=PRECISION),
        tl.dot(value, tl.trans(dout), input_precision=PRECISION),
    )
    scores = tl.zeros([C, C], tl.float32)
    for level in range(0, LEVELS):  # not unrolled: all levels at once would not fit in the registers
        size = 1 << level
        right = is_right(C, size)
        decay = tl.exp2(sums(to_middle(C, size), lw, EXACT))
        z = tl.where(right, query, key) * decay
        pairs = tl.dot(z.to(DOT), tl.trans(z.to(DOT)), input_precision=PRECISION)
        scores = tl.where(parted(C, size), pairs, scores)
        pulled = tl.where(parted(C, size), mirrored, 0.0).to(DOT)
        gradient = tl.dot(pulled, z.to(DOT), input_precision=PRECISION)
        log_gradient = tl.dot(
            from_middle(C, size).to(DOT), (gradient * z).to(DOT), log_gradient, input_precision=PRECISION
        )
        gradient *= decay
        query_gradient += tl.where(right, gradient, 0.0)
        key_gradient += tl.where(right, 0.0, gradient)
    scores = tl.where(after(C), scores, 0.0)
    value_gradient = tl.dot(scores.to(DOT), dout, value_gradient, input_precision=PRECISION)

    # the bonus: each position's own key and value
    u = tl.load(bonus + head * K + keys).to(tl.float32)[None, :]
    own = tl.sum(value.to(tl.float32) * dout.to(tl.float32), axis=1)[:, None]
    value_gradient += tl.sum(query * u * key, axis=1)[:, None] * dout.to(tl.float32)
    query_gradient += u * key * own
    key_gradient += u * query * own
    tl.store(dbonus + tl.program_id(0).to(tl.int64) * K + keys, tl.sum(query * key * own, axis=0))
    tl.store(dr + offset * K + at_keys, query_gradient.to(dr.dtype.element_ty), mask=keep)
    tl.store(dk + offset * K + at_keys, key_gradient.to(dk.dtype.element_ty), mask=keep)
    tl.store(dv + offset * V + at_values, value_gradient.to(dv.dtype.element_ty), mask=keep)
    raw = tl.load(w + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    raw_gradient = tl.where(raw <= 10.0, log_gradient * lw * (1 / LOG2_E), 0.0)
    tl.store(dw + offset * K + at_keys, raw_gradient.to(dw.dtype.element_ty), mask=keep)


@triton.jit
def link(
    outer: tl.tensor, local: tl.tensor, total: tl.tensor, states: tl.tensor, bounds: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, BACKWARD: tl.constexpr, GIVEN: tl.constexpr,
) -> None:
    """The states `states` [G, H, K, V] before every segment, from what each does alone: `local` and `total` of
    `advance`, and `outer` [S, H, K, V] if GIVEN. BACKWARD goes from the last segment to the first.

    One program per sequence, head and ROWS of the keys; `bounds` [S + 1] counts the segments.
    """
    blocks: tl.constexpr = K // ROWS
    sequence, head = tl.program_id(0) // (H * blocks), tl.program_id(0) // blocks % H
    keys = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    tile = keys[:, None] * V + tl.arange(0, V)[None, :]
    first, last = wide(bounds + sequence), wide(bounds + sequence + 1)
    if GIVEN:
        s = tl.load(outer + (sequence * H + head).to(tl.int64) * (K * V) + tile)
    else:
        s = tl.zeros([ROWS, V], tl.float32)
    for step in range(0, last - first):
        segment = last - 1 - step if BACKWARD else first + step
        here = segment * H + head
        tl.store(states + here * (K * V) + tile, s)
        decay = tl.exp2(tl.load(total + here * K + keys))[:, None]
        s = s * decay + tl.load(local + here * (K * V) + tile)


@triton.jit
def recurrent(
    r: tl.tensor, k: tl.tensor, v: tl.tensor, w: tl.tensor, bonus: tl.tensor,
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
    u = tl.load(bonus + head * K + keys).to(tl.float32)
    if STEP:
        first, last = sequence.to(tl.int64), sequence.to(tl.int64) + 1
    else:
        first, last = wide(bounds + sequence), wide(bounds + sequence + 1)
    for position in range(first, last):
        offset = position * H + head
        query = tl.load(r + offset * K + keys).to(tl.float32)
        key = tl.load(k + offset * K + keys).to(tl.float32)
        value = tl.load(v + offset * V + values).to(tl.float32)
        decay = tl.exp2(log_decay(w + offset * K + keys, True))
        out = tl.sum(query[:, None] * s, axis=0) + tl.sum(query * u * key, axis=0) * value
        tl.store(y + offset * V + values, out.to(y.dtype.element_ty))
        s = s * decay[:, None] + key[:, None] * value[None, :]
    tl.store(final + tile, s)
