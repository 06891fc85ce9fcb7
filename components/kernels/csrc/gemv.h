// Matrix times a few vectors, at the speed of reading the matrix once. Weights are float32, bfloat16, or int8 with one
// scale per output; vectors and sums are float32.
//
// Shape letters: S vectors, K inputs, N outputs.

#pragma once

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

constexpr int MOST_VECTORS = 8;
constexpr int64_t AHEAD = 2048;  // bytes that are asked for before they are needed

// A matrix [N, K] whose rows lie `stride` elements apart; when transposed, its columns do.
template <class E>
struct Matrix {
    const E* data;
    const float* scale;  // [N], or none
    int64_t N, K, stride;
};

template <class E>
INLINE void fetch_line(const E* p, int64_t i) {
    constexpr int64_t line = 64 / int64_t(sizeof(E));
    if (line <= W || i % line == 0) __builtin_prefetch(p);
}

// R rows, `apart` elements from each other, times S vectors of `padded` floats: out[r][s]
template <int S, int R, class E>
INLINE void dot_rows(const E* row, int64_t apart, int64_t K, const float* x, int64_t padded, float (*out)[S]) {
    vec sums[R][S] = {};
    int64_t k = 0;
    constexpr int64_t line = std::max<int64_t>(W, 64 / int64_t(sizeof(E)));
    for (; k + line <= K; k += line) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const E* p = row + r * apart + k;
            __builtin_prefetch((const char*)p + AHEAD);
#pragma GCC unroll 16
            for (int64_t i = 0; i < line; i += W) {
                const vec w = load_wide(p + i);
#pragma GCC unroll 8
                for (int s = 0; s < S; ++s) sums[r][s] += w * load(x + s * padded + k + i);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int s = 0; s < S; ++s) {
            float rest = 0;
            for (int64_t i = k; i < K; ++i) rest += widen(row[r * apart + i]) * x[s * padded + i];
            out[r][s] = sum(sums[r][s]) + rest;
        }
}

template <int S, class E>
void times_rows_of(const Matrix<E>& w, const float* x, int64_t padded, int64_t first, int64_t end, float* y,
                   int64_t y_stride) {
    constexpr int R = S <= 4 ? 4 : 2;
    const int64_t apart = (end - first) / R;
    float out[R][S];
    for (int64_t n = first; n < first + apart; ++n) {
        dot_rows<S, R>(w.data + n * w.stride, apart * w.stride, w.K, x, padded, out);
        for (int r = 0; r < R; ++r)
            for (int s = 0; s < S; ++s) y[s * y_stride + n + r * apart] = out[r][s];
    }
    for (int64_t n = first + apart * R; n < end; ++n) {
        dot_rows<S, 1>(w.data + n * w.stride, 0, w.K, x, padded, out);
        for (int s = 0; s < S; ++s) y[s * y_stride + n] = out[0][s];
    }
}

template <int S, class E>
void times_columns_of(const Matrix<E>& w, const float* x, int64_t padded, const int32_t* used, int64_t count,
                          int64_t first, int64_t end, float* y, int64_t padded_out) {
    constexpr int R = 4;
    for (int s = 0; s < S; ++s) std::fill(y + s * padded_out + first, y + s * padded_out + end, 0.0f);
    for (int64_t u = 0; u < count; u += R) {
        const E *row[R], *next[R];
        float factor[R][S];
        for (int r = 0; r < R; ++r) {
            const int64_t k = used[std::min(u + r, count - 1)];
            row[r] = w.data + k * w.stride;
            next[r] = w.data + used[std::min(u + r + R, count - 1)] * w.stride;
            for (int s = 0; s < S; ++s) factor[r][s] = u + r < count ? x[s * padded + k] : 0.0f;
        }
        int64_t n = first;
        for (; n + W <= end; n += W) {
            vec value[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                fetch_line(next[r] + n, n);
                value[r] = load_wide(row[r] + n);
            }
#pragma GCC unroll 8
            for (int s = 0; s < S; ++s) {
                float* to = y + s * padded_out + n;
                vec total = load(to);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) total += value[r] * factor[r][s];
                store(to, total);
            }
        }
        for (; n < end; ++n)
            for (int s = 0; s < S; ++s)
                for (int r = 0; r < R; ++r) y[s * padded_out + n] += widen(row[r][n]) * factor[r][s];
    }
}

// How many vectors are computed for S of them: x and y must have room for as many.
INLINE int64_t padded_vectors(int64_t S) { return S <= 1 ? 1 : S <= 4 ? 4 : 8; }

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
    if (S == 1) times_rows_of<1>(w, x, x_stride, first, end, y, y_stride);
    else if (S <= 4) times_rows_of<4>(w, x, x_stride, first, end, y, y_stride);
    else times_rows_of<8>(w, x, x_stride, first, end, y, y_stride);
    scale_outputs(w, S, first, end, y, y_stride);
}

// The same for a transposed w, of which only the rows in `used` are read.
template <class E>
void times_columns(const Matrix<E>& w, const float* x, int64_t x_stride, int64_t S, const std::vector<int32_t>& used,
                   int64_t first, int64_t end, float* y, int64_t y_stride) {
    const int64_t count = int64_t(used.size());
    if (S == 1) times_columns_of<1>(w, x, x_stride, used.data(), count, first, end, y, y_stride);
    else if (S <= 4) times_columns_of<4>(w, x, x_stride, used.data(), count, first, end, y, y_stride);
    else times_columns_of<8>(w, x, x_stride, used.data(), count, first, end, y, y_stride);
    scale_outputs(w, S, first, end, y, y_stride);
}

}  // namespace aurora
