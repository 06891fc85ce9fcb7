"""Triton kernels of WKV-7's backward pass; the notation is that of `_wkv7_kernels`.

With dY, the gradient of a chunk's output, and dS, that of the state after it:

    dU = RBᵀ dY + bE dS        dW = (I - AB)⁻ᵀ dU        dS' = exp(sum w) dS + (aP)ᵀ dW + (rP exp w)ᵀ dY

and those of the products are dAB = dW Uᵀ, dAK = dW Vᵀ, dRB = dY Uᵀ and dRK = dY Vᵀ.
"""

import triton
import triton.language as tl

from ._triton_tree import after, before, from_middle, is_right, parted, sums, to_middle
from ._wkv6_kernels import wide
from ._wkv7_kernels import log_decay, products


@triton.jit
def retreat(
    r: tl.tensor, w: tl.tensor, a: tl.tensor, b: tl.tensor, dy: tl.tensor,
    start: tl.tensor, end: tl.tensor, states: tl.tensor, du: tl.tensor, segments: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    STARTS: tl.constexpr, STORES: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr, INVERSE: tl.constexpr,
) -> None:
    """Carries the gradient of a state back through every segment, from `start` [G, H, K, V] if STARTS.

    STORES: writes those after every chunk to `states` [N, H, K, V], dW to `du` [T, H, V], and those before the
    sequences to `end` [S, H, K, V]; otherwise those before every segment to `end` [G, H, K, V].
    """
    segment, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(segments + 5 * segment), wide(segments + 5 * segment + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = keys[:, None] * V + values[None, :]
    here = (segment * H + head).to(tl.int64)
    ds = tl.load(start + here * (K * V) + tile) if STARTS else tl.zeros([K, V], tl.float32)
    place = (wide(segments + 5 * segment + 2) * H + head) * (K * V)
    chunks = tl.cdiv(last - first, C)
    for step in range(0, chunks):
        chunk = chunks - 1 - step
        if STORES:
            tl.store(states + place + chunk * (H * K * V) + tile, ds.to(states.dtype.element_ty))
        position = first + chunk * C
        offset = position * H + head
        keep = (position + rows < last)[:, None]
        lw = log_decay(w + offset * K + at_keys, keep)
        plain = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        query = plain * tl.exp2(lw)
        read = tl.load(a + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        write = tl.load(b + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
        inverse, _, query_write, _ = products(
            query, query, read, write, lw, C, LEVELS, DOT, PRECISION, EXACT, INVERSE, False, True
        )
        own = tl.sum(plain * write, axis=1)[:, None]
        query_write = tl.where(rows[:, None] == rows[None, :], own, query_write).to(DOT)
        dout = tl.load(dy + offset * V + at_values, mask=keep, other=0).to(DOT)
        decay = tl.exp2(sums(after(C), lw, EXACT))
        used_gradient = tl.dot((write * decay).to(DOT), ds.to(DOT), input_precision=PRECISION)
        used_gradient = tl.dot(tl.trans(query_write), dout, used_gradient, input_precision=PRECISION)
        used_gradient = tl.dot(tl.trans(inverse), used_gradient, input_precision=INVERSE).to(DOT)
        if STORES:
            tl.store(du + offset * V + at_values, used_gradient.to(du.dtype.element_ty), mask=keep)
        decay = tl.exp2(sums(before(C), lw, EXACT))
        ds = ds * tl.exp2(tl.sum(lw, axis=0))[:, None]
        ds = tl.dot(tl.trans((read * decay).to(DOT)), used_gradient, ds, input_precision=PRECISION)
        ds = tl.dot(tl.trans((query * decay).to(DOT)), dout, ds, input_precision=PRECISION)
    if STORES:
        sequence = wide(segments + 5 * segment + 3)
        if sequence >= 0:
            tl.store(end + (sequence * H + head) * (K * V) + tile, ds)
    else:
        tl.store(end + here * (K * V) + tile, ds)


@triton.jit
def mirrored(
    later: tl.tensor, earlier: tl.tensor, of_earlier: tl.tensor, of_later: tl.tensor,
    C: tl.constexpr, PRECISION: tl.constexpr,
) -> tl.tensor:
    """[C, C]: below the diagonal later · earlierᵀ, above it of_earlier · of_laterᵀ."""
    low = tl.dot(later, tl.trans(earlier), input_precision=PRECISION)
    high = tl.dot(of_earlier, tl.trans(of_later), input_precision=PRECISION)
    return tl.where(before(C), low, tl.where(after(C), high, 0.0))


@triton.jit
def backward(
    r: tl.tensor, w: tl.tensor, k: tl.tensor, v: tl.tensor, a: tl.tensor, b: tl.tensor, dy: tl.tensor,
    states: tl.tensor, dstates: tl.tensor, u: tl.tensor, du: tl.tensor,
    dr: tl.tensor, dw: tl.tensor, dk: tl.tensor, dv: tl.tensor, da: tl.tensor, db: tl.tensor, chunks: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
) -> None:
    """All gradients of one chunk, from the state before it and the gradient of that after it, both [N, H, K, V], and
    from U and dW [T, H, V].

    `chunks` [N, 2] int32: first position and end.
    """
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    first, last = wide(chunks + 2 * chunk), wide(chunks + 2 * chunk + 1)
    rows, keys, values = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    at_keys, at_values = rows[:, None] * (H * K) + keys[None, :], rows[:, None] * (H * V) + values[None, :]
    tile = tl.program_id(0).to(tl.int64) * (K * V) + keys[:, None] * V + values[None, :]
    offset = first * H + head
    keep = (first + rows < last)[:, None]
    lw = log_decay(w + offset * K + at_keys, keep)
    plain = tl.load(r + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    key = tl.load(k + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    read = tl.load(a + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    write = tl.load(b + offset * K + at_keys, mask=keep, other=0).to(tl.float32)
    value = tl.load(v + offset * V + at_values, mask=keep, other=0).to(DOT)
    dout = tl.load(dy + offset * V + at_values, mask=keep, other=0).to(DOT)
    s, ds = tl.load(states + tile).to(DOT), tl.load(dstates + tile).to(DOT)
    query = plain * tl.exp2(lw)
    used = tl.load(u + offset * V + at_values, mask=keep, other=0).to(DOT)
    dused = tl.load(du + offset * V + at_values, mask=keep, other=0).to(DOT)

    # what went through the states
    decay, to_end = tl.exp2(sums(before(C), lw, EXACT)), tl.exp2(sums(after(C), lw, EXACT))
    value_gradient = tl.dot((key * to_end).to(DOT), ds, input_precision=PRECISION)
    read_gradient = tl.dot(dused, tl.trans(s), input_precision=PRECISION) * decay
    query_gradient = tl.dot(dout, tl.trans(s), input_precision=PRECISION) * decay
    write_gradient = tl.dot(used, tl.trans(ds), input_precision=PRECISION) * to_end
    key_gradient = tl.dot(value, tl.trans(ds), input_precision=PRECISION) * to_end
    into = (read * read_gradient + query * query_gradient).to(DOT)
    out_of = (write * write_gradient + key * key_gradient).to(DOT)
    log_gradient = tl.dot(after(C).to(DOT), into, input_precision=PRECISION)
    log_gradient = tl.dot(before(C).to(DOT), out_of, log_gradient, input_precision=PRECISION)
    through = tl.sum(ds.to(tl.float32) * s.to(tl.float32), axis=1)
    log_gradient += (tl.exp2(tl.sum(lw, axis=0)) * through)[None, :]

    # what went from position to position: x holds a and b, z holds r and k, later and earlier ones
    of_xx = mirrored(dused, used, used, dused, C, PRECISION)
    of_xz = mirrored(dused, value, used, dout, C, PRECISION)
    of_zx = mirrored(dout, used, value, dused, C, PRECISION)
    of_zz = mirrored(dout, value, value, dout, C, PRECISION)
    key_query, key_read = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for level in range(0, LEVELS):
        size = 1 << level
        right, pair = is_right(C, size), parted(C, size)
        decay = tl.exp2(sums(to_middle(C, size), lw, EXACT))
        x, z = tl.where(right, read, write) * decay, tl.where(right, query, key) * decay
        x_, z_ = x.to(DOT), z.to(DOT)
        of_x = tl.dot(tl.where(pair, of_xx, 0.0).to(DOT), x_, input_precision=PRECISION)
        of_x = tl.dot(tl.where(pair, of_xz, 0.0).to(DOT), z_, of_x, input_precision=PRECISION)
        of_z = tl.dot(tl.where(pair, of_zx, 0.0).to(DOT), x_, input_precision=PRECISION)
        of_z = tl.dot(tl.where(pair, of_zz, 0.0).to(DOT), z_, of_z, input_precision=PRECISION)
        key_query = tl.where(pair, tl.dot(z_, tl.trans(z_), input_precision=PRECISION), key_query)
        key_read = tl.where(pair, tl.dot(z_, tl.trans(x_), input_precision=PRECISION), key_read)
        ones = from_middle(C, size).to(DOT)
        log_gradient = tl.dot(ones, (of_x * x + of_z * z).to(DOT), log_gradient, input_precision=PRECISION)
        of_x, of_z = of_x * decay, of_z * decay
        read_gradient += tl.where(right, of_x, 0.0)
        write_gradient += tl.where(right, 0.0, of_x)
        query_gradient += tl.where(right, of_z, 0.0)
        key_gradient += tl.where(right, 0.0, of_z)

    # by the later positions that have read them
    same = rows[:, None] == rows[None, :]
    key_query = tl.where(after(C), key_query, tl.where(same, tl.sum(plain * key, axis=1)[:, None], 0.0))
    value_gradient = tl.dot(key_query.to(DOT), dout, value_gradient, input_precision=PRECISION)
    key_read = tl.where(after(C), key_read, 0.0).to(DOT)
    value_gradient = tl.dot(key_read, dused, value_gradient, input_precision=PRECISION)
    tl.store(dv + offset * V + at_values, value_gradient.to(dv.dtype.element_ty), mask=keep)

    # each position's own: its decay in `query`, and what it reads of what it has just written
    log_gradient += query * query_gradient
    of_write = tl.sum(dout.to(tl.float32) * used.to(tl.float32), axis=1)[:, None]
    of_key = tl.sum(dout.to(tl.float32) * value.to(tl.float32), axis=1)[:, None]
    query_gradient = query_gradient * tl.exp2(lw) + write * of_write + key * of_key
    write_gradient += plain * of_write
    key_gradient += plain * of_key
    tl.store(dr + offset * K + at_keys, query_gradient.to(dr.dtype.element_ty), mask=keep)
    tl.store(dw + offset * K + at_keys, log_gradient.to(dw.dtype.element_ty), mask=keep)
    tl.store(dk + offset * K + at_keys, key_gradient.to(dk.dtype.element_ty), mask=keep)
    tl.store(da + offset * K + at_keys, read_gradient.to(da.dtype.element_ty), mask=keep)
    tl.store(db + offset * K + at_keys, write_gradient.to(db.dtype.element_ty), mask=keep)
