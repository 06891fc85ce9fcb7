"""Triton kernels of WKV-6: one program per head and segment, chunk after chunk with the state in registers.

Shape letters: T packed positions, G segments, N chunks, S sequences, H heads, K key width, V value width, C positions
per chunk.

A segment is a piece of one sequence, `segments` [G, 5] int32: its first position, its end, its first chunk, the
sequence that it opens and the one that it closes (or -1). `DOT` is what matrix products multiply in.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ._triton_tree import after, before, halves, is_right, parted, sums, to_middle


@triton.jit
def wide(pointer: Any) -> Any:
    # what is counted from these passes 2^31 elements in a row of a million positions
    return tl.load(pointer).to(tl.int64)


@triton.jit
def log_decay(w: Any, keep: Any) -> Any:
    # exp(-exp(10)) is 0 in every format
    return -tl.exp(tl.minimum(tl.load(w, mask=keep, other=float("-inf")).to(tl.float32), 10.0))


@triton.jit
def advance(
    a: Any, x: Any, w: Any, start: Any, states: Any, end: Any, total: Any, segments: Any,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BACKWARD: tl.constexpr, STARTS: tl.constexpr, STORES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
) -> None:
    """Carries a state through every segment: s → exp(sum lw) s + Σ_t a_tᵀ x_t, each decayed to the chunk's end.

    BACKWARD goes from the last chunk to the first and decays to the chunk's start: the state is then a gradient.
    STARTS: from `start` [G, H, K, V], otherwise from zeros. STORES: writes the state before every chunk to `states`
    [N, H, K, V], otherwise that at the end to `end` [G, H, K, V] and the sum of log-decays to `total` [G, H, K].
    """
    segment, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(segments + 5 * segment), wide(segments + 5 * segment + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = keys[:, None] * V + values[None, :]
    here = (segment * H + head).to(tl.int64)
    if STARTS:
        s = tl.load(start + here * (K * V) + tile)
    else:
        s = tl.zeros([K, V], tl.float32)
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
        high, low = halves(lw)
        ones = before(C) if BACKWARD else after(C)
        scaled = tl.load(a + offset * K + at_keys, mask=keep, other=0).to(tl.float32) * tl.exp(sums(ones, high, low))
        inner = tl.load(x + offset * V + at_values, mask=keep, other=0).to(DOT)
        through = tl.sum(lw, axis=0)
        s = s * tl.exp(through)[:, None]
        s = tl.dot(tl.trans(scaled.to(DOT)), inner, s, input_precision=PRECISION)
        passed += through
    if not STORES:
        tl.store(end + here * (K * V) + tile, s)
        tl.store(total + here * K + keys, passed)


@triton.jit
def forward(
    r: Any, k: Any, v: Any, w: Any, bonus: Any, start: Any, y: Any, final: Any, segments: Any,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
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
        high, low = halves(lw)
        query = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        key = tl.load(k + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        value = tl.load(v + offset * V + at_values, mask=keep, other=0)

        scores = tl.zeros([C, C], tl.float32)
        for level in tl.static_range(LEVELS):
            z = tl.where(is_right(C, 1 << level), query, key)
            if level > 0:
                z *= tl.exp(sums(to_middle(C, 1 << level), high, low))
            pairs = tl.dot(z.to(DOT), tl.trans(z.to(DOT)), input_precision=PRECISION)
            scores = tl.where(parted(C, 1 << level), pairs, scores)
        scores = tl.where(before(C), scores, 0.0)

        queries = query * tl.exp(sums(before(C), high, low))
        out = tl.sum(query * u * key, axis=1)[:, None] * value.to(tl.float32)
        out = tl.dot(queries.to(DOT), s.to(DOT), out, input_precision=PRECISION)
        out = tl.dot(scores.to(DOT), value.to(DOT), out, input_precision=PRECISION)
        tl.store(y + offset * V + at_values, out.to(y.dtype.element_ty), mask=keep)

        ends = key * tl.exp(sums(after(C), high, low))
        s = s * tl.exp(tl.sum(lw, axis=0))[:, None]
        s = tl.dot(tl.trans(ends.to(DOT)), value.to(DOT), s, input_precision=PRECISION)
    sequence = wide(segments + 5 * segment + 4)
    if sequence >= 0:
        tl.store(final + (sequence * H + head) * (K * V) + tile, s)


@triton.jit
def backward(
    r: Any, k: Any, v: Any, w: Any, bonus: Any, dy: Any, states: Any, end: Any,
    dr: Any, dk: Any, dv: Any, dw: Any, dbonus: Any, dstart: Any, segments: Any,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
) -> None:
    """All gradients, from the states before every chunk `states` [N, H, K, V] and the gradients of the states after
    every segment `end` [G, H, K, V]; `dbonus` [G, H, K], `dstart` [S, H, K, V], the others as their inputs."""
    segment, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(segments + 5 * segment), wide(segments + 5 * segment + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = keys[:, None] * V + values[None, :]
    here = (segment * H + head).to(tl.int64)
    ds = tl.load(end + here * (K * V) + tile)
    u = tl.load(bonus + head * K + keys).to(tl.float32)[None, :]
    du = tl.zeros([K], tl.float32)
    chunks = tl.cdiv(last - first, C)
    place = (wide(segments + 5 * segment + 2) * H + head) * (K * V)
    for step in range(0, chunks):
        chunk = chunks - 1 - step
        position = first + chunk * C
        offset = position * H + head
        keep = (position + rows < last)[:, None]
        lw = log_decay(w + offset * K + at_keys, keep)
        high, low = halves(lw)
        query = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        key = tl.load(k + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        value = tl.load(v + offset * V + at_values, mask=keep, other=0).to(DOT)
        dout = tl.load(dy + offset * V + at_values, mask=keep, other=0).to(DOT)
        s = tl.load(states + place + chunk * (H * K * V) + tile)

        # what went through the states: before the chunk to its positions, and from them to after it
        through = tl.exp(tl.sum(lw, axis=0))
        decay = tl.exp(sums(before(C), high, low))
        query_gradient = tl.dot(dout, tl.trans(s.to(DOT)), input_precision=PRECISION) * decay
        queries = (query * decay).to(DOT)
        decay = tl.exp(sums(after(C), high, low))
        key_gradient = tl.dot(value, tl.trans(ds.to(DOT)), input_precision=PRECISION) * decay
        value_gradient = tl.dot((key * decay).to(DOT), ds.to(DOT), input_precision=PRECISION)
        log_gradient = (through * tl.sum(ds * s.to(tl.float32), axis=1))[None, :]
        log_gradient += tl.dot(after(C).to(DOT), (query * query_gradient).to(DOT), input_precision=PRECISION)
        log_gradient += tl.dot(before(C).to(DOT), (key * key_gradient).to(DOT), input_precision=PRECISION)
        ds = tl.dot(tl.trans(queries), dout, ds * through[:, None], input_precision=PRECISION)

        # what went from position to position; the gradients of the scores are mirrored to above the diagonal
        mirrored = tl.where(
            before(C),
            tl.dot(dout, tl.trans(value), input_precision=PRECISION),
            tl.dot(value, tl.trans(dout), input_precision=PRECISION),
        )
        scores = tl.zeros([C, C], tl.float32)
        for level in tl.static_range(LEVELS):
            right = is_right(C, 1 << level)
            z = tl.where(right, query, key)
            if level > 0:
                decay = tl.exp(sums(to_middle(C, 1 << level), high, low))
                z *= decay
            pairs = tl.dot(z.to(DOT), tl.trans(z.to(DOT)), input_precision=PRECISION)
            scores = tl.where(parted(C, 1 << level), pairs, scores)
            pulled = tl.where(parted(C, 1 << level), mirrored, 0.0).to(DOT)
            gradient = tl.dot(pulled, z.to(DOT), input_precision=PRECISION)
            if level > 0:
                # ones are symmetric but for the two directions, so their transpose is the mirrored one
                ones = tl.trans(to_middle(C, 1 << level).to(DOT))
                log_gradient += tl.dot(ones, (gradient * z).to(DOT), input_precision=PRECISION)
                gradient *= decay
            query_gradient += tl.where(right, gradient, 0.0)
            key_gradient += tl.where(right, 0.0, gradient)
        scores = tl.where(after(C), scores, 0.0)
        value_gradient = tl.dot(scores.to(DOT), dout, value_gradient, input_precision=PRECISION)

        # the bonus: each position's own key and value
        own = tl.sum(value.to(tl.float32) * dout.to(tl.float32), axis=1)[:, None]
        value_gradient += tl.sum(query * u * key, axis=1)[:, None] * dout.to(tl.float32)
        du += tl.sum(query * key * own, axis=0)
        query_gradient += u * key * own
        key_gradient += u * query * own
        tl.store(dr + offset * K + at_keys, query_gradient.to(dr.dtype.element_ty), mask=keep)
        tl.store(dk + offset * K + at_keys, key_gradient.to(dk.dtype.element_ty), mask=keep)
        tl.store(dv + offset * V + at_values, value_gradient.to(dv.dtype.element_ty), mask=keep)
        raw = tl.load(w + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        raw_gradient = tl.where(raw <= 10.0, log_gradient * lw, 0.0)
        tl.store(dw + offset * K + at_keys, raw_gradient.to(dw.dtype.element_ty), mask=keep)
    tl.store(dbonus + here * K + keys, du)
    sequence = wide(segments + 5 * segment + 3)
    if sequence >= 0:
        tl.store(dstart + (sequence * H + head) * (K * V) + tile, ds)


@triton.jit
def link(
    outer: Any, local: Any, total: Any, states: Any, bounds: Any,
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
        decay = tl.exp(tl.load(total + here * K + keys))[:, None]
        s = s * decay + tl.load(local + here * (K * V) + tile)


@triton.jit
def recurrent(
    r: Any, k: Any, v: Any, w: Any, bonus: Any, start: Any, y: Any, final: Any, bounds: Any,
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
        decay = tl.exp(log_decay(w + offset * K + keys, True))
        out = tl.sum(query[:, None] * s, axis=0) + tl.sum(query * u * key, axis=0) * value
        tl.store(y + offset * V + values, out.to(y.dtype.element_ty))
        s = s * decay[:, None] + key[:, None] * value[None, :]
    tl.store(final + tile, s)
