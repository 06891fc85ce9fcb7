// Matrix times some vectors, at the speed of reading the matrix once. Weights are float32, bfloat16, or int8 with one
// scale per output; vectors and sums are float32.
//
// Shape letters: S vectors, K inputs, N outputs.

#pragma once

#include <type_traits>

#include "common.h"

namespace aurora {

typedef int8_t bvec __attribute__((vector_size(W), aligned(1), may_alias));

INLINE float widen(int8_t x) { return x; }
INLINE vec load_wide(const int8_t* p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const bvec*>(p), ivec), vec);
#endif
}

// The 2 W weights from p on in two vectors. Those of bfloat16 are the ones at even and those at odd places, because each
// takes one instruction then, where two in order take four: read from memory, weights come faster than they are widened.
template <class E>
INLINE void load_two(const E* p, vec* w) {
    w[0] = load_wide(p);
    w[1] = load_wide(p + W);
}
typedef uint32_t pairs_vec __attribute__((vector_size(4 * W), aligned(2), may_alias));
INLINE void load_two(const bf16* p, vec* w) {
    const pairs_vec pairs = *reinterpret_cast<const pairs_vec*>(p);
    w[0] = (vec)(pairs << 16);
    w[1] = (vec)(pairs & 0xffff0000u);
}

// How many weights are read at once, whole lines: what is behind the last ones is taken one by one.
template <class E>
constexpr int64_t LINE = std::max<int64_t>(2 * W, 64 / int64_t(sizeof(E)));

// The order of load_two for floats that meet such weights; the last ones, which are less than a line, stay in place.
template <int... I>
INLINE void split_pairs(const float* from, float* to, std::integer_sequence<int, I...>) {
    const vec a = load(from), b = load(from + W);
    store(to, __builtin_shufflevector(a, b, (2 * I)...));
    store(to + W, __builtin_shufflevector(a, b, (2 * I + 1)...));
}
INLINE void to_order(const float* from, float* to, int64_t n) {
    const int64_t whole = n / LINE<bf16> * LINE<bf16>;
    for (int64_t i = 0; i < whole; i += 2 * W) split_pairs(from + i, to + i, std::make_integer_sequence<int, W>{});
    std::copy(from + whole, from + n, to + whole);
}
INLINE void from_order(float* y, int64_t n) {
    constexpr std::make_integer_sequence<int, W> lanes{};
    for (int64_t i = 0; i < n / LINE<bf16> * LINE<bf16>; i += 2 * W) {
        const vec even = load(y + i), odd = load(y + i + W);
        store(y + i, interleave_low(even, odd, lanes));
        store(y + i + W, interleave_high(even, odd, lanes));
    }
}

constexpr int GROUP = 8;  // vectors that are computed together; more of them follow while the weights lie in the cache
constexpr int64_t AHEAD = 1024;  // bytes that are fetched into the second cache before they are needed

// A matrix [N, K] whose rows lie `stride` elements apart; when transposed, its columns do.
template <class E>
struct Matrix {
    const E* data;
    const float* scale;  // [N], or none
    int64_t N, K, stride;
    bool transposed = false;
    bool is_near = false;  // in the caches of this core, so that it costs little to read it again
};

// R rows, `apart` elements from each other, times S vectors of `padded` floats in the order of load_two: out[r][s]
template <int S, int R, class E>
INLINE void dot_rows(const E* row, int64_t apart, int64_t K, const float* x, int64_t padded, float (*out)[S]) {
    vec sums[R][S];  // in registers: set one by one, and never pointed at
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) sums[r][s] = splat(0.0f);
    int64_t k = 0;
    constexpr int64_t line = LINE<E>;
    for (; k + line <= K; k += line) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const E* p = row + r * apart + k;
#pragma GCC unroll 2
            for (int64_t i = 0; i < line; i += 64 / int64_t(sizeof(E)))
                __builtin_prefetch((const char*)(p + i) + AHEAD, 0, 2);
#pragma GCC unroll 16
            for (int64_t i = 0; i < line; i += 2 * W) {
                vec w[2];
                load_two(p + i, w);
#pragma GCC unroll 8
                for (int s = 0; s < S; ++s) {
                    sums[r][s] += w[0] * load(x + s * padded + k + i);
                    sums[r][s] += w[1] * load(x + s * padded + k + i + W);
                }
            }
        }
    }
    float* to = &out[0][0];
    if constexpr (R * S % W == 0) {
        vec all[R * S];
#pragma GCC unroll 16
        for (int i = 0; i < R * S; ++i) all[i] = sums[i / S][i % S];
#pragma GCC unroll 4
        for (int i = 0; i < R * S; i += W) store(to + i, sum_lanes(all + i));
    } else
        for (int i = 0; i < R * S; ++i) to[i] = sum(sums[i / S][i % S]);
    if (k == K) return;
    for (int r = 0; r < R; ++r)
        for (int s = 0; s < S; ++s) {
            float rest = 0;
            for (int64_t i = k; i < K; ++i) rest += widen(row[r * apart + i]) * x[s * padded + i];
            out[r][s] += rest;
        }
}

template <int S, class E>
void times_rows_of(const Matrix<E>& w, const float* x, int64_t padded, int64_t groups, int64_t first, int64_t end,
                   float* y, int64_t y_stride) {
    constexpr int R = S <= 4 ? 4 : 2;
    const int64_t apart = (end - first) / R;
    float out[R][S];
    for (int64_t n = first; n < first + apart; ++n)
        for (int64_t g = 0; g < groups * S; g += S) {
            dot_rows<S, R>(w.data + n * w.stride, apart * w.stride, w.K, x + g * padded, padded, out);
            for (int r = 0; r < R; ++r)
                for (int s = 0; s < S; ++s) y[(g + s) * y_stride + n + r * apart] = out[r][s];
        }
    for (int64_t n = first + apart * R; n < end; ++n)
        for (int64_t g = 0; g < groups * S; g += S) {
            dot_rows<S, 1>(w.data + n * w.stride, 0, w.K, x + g * padded, padded, out);
            for (int s = 0; s < S; ++s) y[(g + s) * y_stride + n] = out[0][s];
        }
}

template <int S>
constexpr int COLUMNS = S <= 4 ? 8 : 4;

// From used[u] on, many columns of w are read together, each in one stream: y is read and written once for all of them.
template <int S, class E>
INLINE void add_columns(const Matrix<E>& w, const float* x, int64_t padded, const int32_t* used, int64_t count,
                        int64_t u, int64_t first, int64_t end, float* y, int64_t padded_out) {
    constexpr int R = COLUMNS<S>;
    constexpr int64_t block = LINE<E>, ahead = 32 * 64 / int64_t(sizeof(E));
    const E *row[R], *next[R];
    float factor[R][S];
    for (int r = 0; r < R; ++r) {
        const int64_t k = used[std::min(u + r, count - 1)];
        row[r] = w.data + k * w.stride;
        next[r] = w.data + used[std::min(u + r + R, count - 1)] * w.stride;
        for (int s = 0; s < S; ++s) factor[r][s] = u + r < count ? x[s * padded + k] : 0.0f;
    }
    int64_t n = first;
    for (; n + block <= end; n += block) {
        const bool inside = n + ahead < end;
        const int64_t wanted = inside ? n + ahead : std::min(n + ahead - end + first, end - 1);
#pragma GCC unroll 4
        for (int64_t at = n; at < n + block; at += 2 * W) {
            vec total[S][2];
#pragma GCC unroll 8
            for (int s = 0; s < S; ++s)
                for (int half = 0; half < 2; ++half) total[s][half] = load(y + s * padded_out + at + half * W);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                // into the second cache: these are more lines than the first has room for
                if (at == n) __builtin_prefetch((inside ? row : next)[r] + wanted, 0, 2);
                vec value[2];
                load_two(row[r] + at, value);
#pragma GCC unroll 8
                for (int s = 0; s < S; ++s)
                    for (int half = 0; half < 2; ++half) total[s][half] += value[half] * factor[r][s];
            }
#pragma GCC unroll 8
            for (int s = 0; s < S; ++s)
                for (int half = 0; half < 2; ++half) store(y + s * padded_out + at + half * W, total[s][half]);
        }
    }
    for (; n + W <= end; n += W)
        for (int s = 0; s < S; ++s) {
            vec total = load(y + s * padded_out + n);
            for (int r = 0; r < R; ++r) total += load_wide(row[r] + n) * factor[r][s];
            store(y + s * padded_out + n, total);
        }
    for (; n < end; ++n)
        for (int s = 0; s < S; ++s)
            for (int r = 0; r < R; ++r) y[s * padded_out + n] += widen(row[r][n]) * factor[r][s];
}

// R vectors times the used columns of a near w, for the 2 W V outputs from n on: sums stay in registers, and are taken
// in the same order as above.
template <int R, int V, class E>
INLINE void tile_columns(const Matrix<E>& w, const float* x, int64_t padded, const int32_t* used, int64_t count,
                         int64_t n, float* y, int64_t padded_out) {
    vec sums[R][2 * V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * V; ++i) sums[r][i] = splat(0.0f);
    for (int64_t u = 0; u < count; ++u) {
        const int64_t k = used[u];
        const E* row = w.data + k * w.stride + n;
        vec value[2 * V];
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) load_two(row + i * 2 * W, value + 2 * i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const float factor = x[r * padded + k];
#pragma GCC unroll 8
            for (int i = 0; i < 2 * V; ++i) sums[r][i] += value[i] * factor;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * V; ++i) store(y + r * padded_out + n + i * W, sums[r][i]);
}

// The first outputs of all vectors, whole lines; gives where the rest begins.
template <int S, class E>
int64_t tiles_of_columns(const Matrix<E>& w, const float* x, int64_t padded, int64_t groups, const int32_t* used,
                         int64_t count, int64_t first, int64_t end, float* y, int64_t padded_out) {
    constexpr int V = S == 1 ? 4 : S <= 4 ? 2 : 1;
    int64_t n = first;
    const auto outputs = [&](auto pairs) {
        constexpr int P = decltype(pairs)::value;
        for (; n + P * 2 * W <= end; n += P * 2 * W)
            for (int64_t g = 0; g < groups * S; g += S)
                tile_columns<S, P>(w, x + g * padded, padded, used, count, n, y + g * padded_out, padded_out);
    };
    constexpr int line = int(LINE<E> / (2 * W));
    if constexpr (V > line) outputs(std::integral_constant<int, V>{});
    outputs(std::integral_constant<int, line>{});
    return n;
}

template <int S, class E>
void times_columns_of(const Matrix<E>& w, const float* x, int64_t padded, int64_t groups, const int32_t* used,
                      int64_t count, int64_t first, int64_t end, float* y, int64_t padded_out) {
    const int64_t begin = first;
    if (w.is_near) first = tiles_of_columns<S>(w, x, padded, groups, used, count, first, end, y, padded_out);
    for (int64_t s = 0; s < groups * S; ++s) std::fill(y + s * padded_out + first, y + s * padded_out + end, 0.0f);
    for (int64_t u = 0; u < count && first < end; u += COLUMNS<S>)
        for (int64_t g = 0; g < groups * S; g += S)
            add_columns<S>(w, x + g * padded, padded, used, count, u, first, end, y + g * padded_out, padded_out);
    if constexpr (std::is_same<E, bf16>::value)
        for (int64_t s = 0; s < groups * S; ++s) from_order(y + s * padded_out + begin, end - begin);
}

// How many vectors are computed for S of them: x and y must have room for as many.
INLINE int64_t padded_vectors(int64_t S) { return S <= 1 ? 1 : S <= 4 ? 4 : round_up(S, GROUP); }

template <class E>
INLINE void scale_outputs(const Matrix<E>& w, int64_t S, int64_t first, int64_t end, float* y, int64_t y_stride) {
    if (!w.scale) return;
    for (int64_t s = 0; s < S; ++s)
        for (int64_t n = first; n < end; ++n) y[s * y_stride + n] *= w.scale[n];
}

// Outputs [first, end) of y [S][y_stride] = x wᵀ, x [S][x_stride]. Several rows far apart are read together: memory
// serves several streams better than one.
template <class E>
void times_rows(const Matrix<E>& w, const float* x, int64_t x_stride, int64_t S, int64_t first, int64_t end, float* y,
                int64_t y_stride) {
    static thread_local std::vector<float> ordered;
    if constexpr (std::is_same<E, bf16>::value) {
        const int64_t rows = padded_vectors(S);
        float* to = room(ordered, rows * w.K);
        for (int64_t s = 0; s < rows; ++s) to_order(x + s * x_stride, to + s * w.K, w.K);
        x = to;
        x_stride = w.K;
    }
    if (S == 1) times_rows_of<1>(w, x, x_stride, 1, first, end, y, y_stride);
    else if (S <= 4) times_rows_of<4>(w, x, x_stride, 1, first, end, y, y_stride);
    else times_rows_of<GROUP>(w, x, x_stride, (S + GROUP - 1) / GROUP, first, end, y, y_stride);
    scale_outputs(w, S, first, end, y, y_stride);
}

// The same for a transposed w, of which only the rows in `used` [count] are read.
template <class E>
void times_columns(const Matrix<E>& w, const float* x, int64_t x_stride, int64_t S, const int32_t* used,
                   int64_t count, int64_t first, int64_t end, float* y, int64_t y_stride) {
    if (S == 1) times_columns_of<1>(w, x, x_stride, 1, used, count, first, end, y, y_stride);
    else if (S <= 4) times_columns_of<4>(w, x, x_stride, 1, used, count, first, end, y, y_stride);
    else times_columns_of<GROUP>(w, x, x_stride, (S + GROUP - 1) / GROUP, used, count, first, end, y, y_stride);
    scale_outputs(w, S, first, end, y, y_stride);
}

// The same for any w, of which all inputs are used.
template <class E>
void times(const Matrix<E>& w, const float* x, int64_t x_stride, int64_t S, int64_t first, int64_t end, float* y,
           int64_t y_stride) {
    if (!w.transposed) return times_rows(w, x, x_stride, S, first, end, y, y_stride);
    static thread_local std::vector<int32_t> all;
    for (int64_t k = all.size(); k < w.K; ++k) all.push_back(int32_t(k));
    times_columns(w, x, x_stride, S, all.data(), w.K, first, end, y, y_stride);
}

}  // namespace aurora
