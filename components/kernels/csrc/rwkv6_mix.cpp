// What stands between the matrix products of RWKV-6, each in one pass over its memory; float32 inside.
// Shape letters: T packed positions, S sequences, C width, H heads, N head width.

#include <omp.h>

#include <cmath>

#include "common.h"

namespace {

using namespace aurora;

INLINE vec sigmoid(vec x) {
    const vec low = splat(-80.0f);
    return 1.0f / (1.0f + exp(-(x < low ? low : x)));
}

// y = sigmoid(x), times x where `times` is set; n rounded up to whole vectors must be allocated.
INLINE void sigmoid_row(const float* x, float* y, int64_t n, bool times) {
    for (int64_t i = 0; i < n; i += W) {
        const vec value = load(x + i), s = sigmoid(value);
        store(y + i, times ? s * value : s);
    }
}

INLINE void scale_and_shift(float* x, const float* weight, const float* bias, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] * weight[i] + bias[i];
}

// Which sequence starts at each position, or -1.
std::vector<int32_t> starts(const int64_t* bounds, int64_t sequences) {
    std::vector<int32_t> start(bounds[sequences], -1);
    for (int64_t s = 0; s < sequences; ++s) start[bounds[s]] = int32_t(s);
    return start;
}

// Calls work(first, end) for the positions of each thread.
template <class Work>
void for_positions(int64_t T, int threads, Work work) {
#pragma omp parallel num_threads(threads)
    {
        const FlushSubnormals flush;
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t first = T * thread / all, end = T * (thread + 1) / all;
        if (first < end) work(first, end);
    }
}

template <class E>
struct NormShift {
    const E *x, *delta, *gate;  // [T, C]; delta and gate may be none
    const E *weight, *bias;     // [C]
    const E* before;            // [S, C], or none for zeros
    const int64_t* bounds;      // [S + 1]
    int64_t sequences;
    const E* const* ratios;  // [mixes][C]
    int64_t mixes;
    E *sum, *normal;  // [T, C]; sum is none where delta is
    E* const* mixed;  // [mixes][T, C]
    int64_t C;
    float eps;
    int threads;

    // The row of x plus what is added to it, rounded as it is kept
    void add(int64_t t, float* row, float* other, E* kept) const {
        read_row(row, x + t * C, C);
        if (!delta) return;
        if (gate) {
            read_row(other, gate + t * C, C);
            sigmoid_row(other, other, C, false);
            const E* from = delta + t * C;
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) row[c] += other[c] * widen(from[c]);
        } else {
            const E* from = delta + t * C;
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) row[c] += widen(from[c]);
        }
        write_row(kept, row, C);
        read_row(row, kept, C);
    }

    void run() const {
        const auto start = starts(bounds, sequences);
        for_positions(bounds[sequences], threads, [&](int64_t first, int64_t end) {
            const int64_t padded = round_up(C, W);
            Scratch memory((7 + mixes) * padded);
            float *w = memory.take(padded), *b = memory.take(padded), *row = memory.take(padded);
            float *other = memory.take(padded), *now = memory.take(padded), *last = memory.take(padded);
            std::vector<E> unkept(C);
            std::vector<float*> ratio(mixes);
            for (int64_t m = 0; m < mixes; ++m) read_row(ratio[m] = memory.take(padded), ratios[m], C);
            read_row(w, weight, C);
            read_row(b, bias, C);
            // the row before the first one belongs to another thread, so it is computed once more
            for (int64_t t = start[first] < 0 ? first - 1 : first; t < end; ++t) {
                E* rounded = t < first ? unkept.data() : normal + t * C;
                add(t, row, other, t < first ? unkept.data() : sum + t * C);
                normalise(row, now, C, eps);
                scale_and_shift(now, w, b, C);
                write_row(rounded, now, C);
                read_row(now, rounded, C);
                if (t >= first) mix(t, start[t], now, last, ratio.data(), other);
                std::swap(now, last);
            }
        });
    }

    void mix(int64_t t, int32_t sequence, const float* now, float* last, float* const* ratio, float* out) const {
        if (sequence >= 0) {
            if (before)
                read_row(last, before + sequence * C, C);
            else
                std::fill(last, last + C, 0.0f);
        }
        for (int64_t m = 0; m < mixes; ++m) {
            const float* share = ratio[m];
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) out[c] = now[c] + (last[c] - now[c]) * share[c];
            write_row(mixed[m] + t * C, out, C);
        }
    }
};

template <class E>
void mix_five(const E* x, const E* before, const int64_t* bounds, int64_t sequences, const E* ratios,
              const E* const* constants, E* out, int64_t C, int threads) {
    const auto start = starts(bounds, sequences);
    const int64_t T = bounds[sequences];
    for_positions(T, threads, [&](int64_t first, int64_t end) {
        const int64_t padded = round_up(C, W);
        Scratch memory(9 * padded);
        float* constant[5];
        for (int i = 0; i < 5; ++i) read_row(constant[i] = memory.take(padded), constants[i], C);
        float *now = memory.take(padded), *last = memory.take(padded), *ratio = memory.take(padded);
        for (int64_t t = first; t < end; ++t) {
            read_row(now, x + t * C, C);
            if (start[t] < 0)
                read_row(last, x + (t - 1) * C, C);
            else if (before)
                read_row(last, before + start[t] * C, C);
            else
                std::fill(last, last + C, 0.0f);
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) last[c] -= now[c];
            for (int i = 0; i < 5; ++i) {
                read_row(ratio, ratios + (i * T + t) * C, C);
                const float* own = constant[i];
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) ratio[c] = now[c] + last[c] * (ratio[c] + own[c]);
                write_row(out + (i * T + t) * C, ratio, C);
            }
        }
    });
}

template <class E>
void norm_gate(const E* x, const E* gate, const E* weight, const E* bias, E* out, int64_t T, int64_t C, int64_t H,
               float eps, int threads) {
    for_positions(T, threads, [&](int64_t first, int64_t end) {
        const int64_t padded = round_up(C, W), N = C / H;
        Scratch memory(5 * padded);
        float *w = memory.take(padded), *b = memory.take(padded), *row = memory.take(padded);
        float* g = memory.take(padded);
        read_row(w, weight, C);
        read_row(b, bias, C);
        for (int64_t t = first; t < end; ++t) {
            read_row(row, x + t * C, C);
            read_row(g, gate + t * C, C);
            for (int64_t h = 0; h < H; ++h) normalise(row + h * N, row + h * N, N, eps);
            scale_and_shift(row, w, b, C);
            sigmoid_row(g, g, C, true);
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) row[c] *= g[c];
            write_row(out + t * C, row, C);
        }
    });
}

template <class E>
void norm_shift(const void* x, const void* delta, const void* gate, const void* weight, const void* bias,
                const void* before, const int64_t* bounds, int64_t sequences, const void* const* ratios, int64_t mixes,
                void* sum, void* normal, void* const* mixed, int64_t C, float eps, int threads) {
    NormShift<E>{(const E*)x, (const E*)delta, (const E*)gate, (const E*)weight, (const E*)bias, (const E*)before, bounds,
                 sequences, (const E* const*)ratios, mixes, (E*)sum, (E*)normal, (E* const*)mixed, C, eps, threads}
        .run();
}

}  // namespace

// sum = x + delta (times sigmoid(gate)); normal = layer norm of sum; mixed = between normal and the one before it.
extern "C" void rwkv6_norm_shift(const void* x, const void* delta, const void* gate, const void* weight,
                                 const void* bias, const void* before, const int64_t* bounds, int64_t sequences,
                                 const void* const* ratios, int64_t mixes, void* sum, void* normal, void* const* mixed,
                                 int64_t C, float eps, int is_bf16, int threads) {
    (is_bf16 ? norm_shift<bf16> : norm_shift<float>)(x, delta, gate, weight, bias, before, bounds, sequences, ratios,
                                                     mixes, sum, normal, mixed, C, eps, threads);
}

// out [5, T, C]: between x and the one before it, by constants [5][C] plus ratios [5, T, C]
extern "C" void rwkv6_mix_five(const void* x, const void* before, const int64_t* bounds, int64_t sequences,
                               const void* ratios, const void* const* constants, void* out, int64_t C, int is_bf16,
                               int threads) {
    if (is_bf16)
        mix_five((const bf16*)x, (const bf16*)before, bounds, sequences, (const bf16*)ratios,
                 (const bf16* const*)constants, (bf16*)out, C, threads);
    else
        mix_five((const float*)x, (const float*)before, bounds, sequences, (const float*)ratios,
                 (const float* const*)constants, (float*)out, C, threads);
}

// out = group norm of x, times silu(gate); all [T, C]
extern "C" void rwkv6_norm_gate(const void* x, const void* gate, const void* weight, const void* bias, void* out,
                                int64_t T, int64_t C, int64_t H, float eps, int is_bf16, int threads) {
    if (is_bf16)
        norm_gate((const bf16*)x, (const bf16*)gate, (const bf16*)weight, (const bf16*)bias, (bf16*)out, T, C, H, eps,
                  threads);
    else
        norm_gate((const float*)x, (const float*)gate, (const float*)weight, (const float*)bias, (float*)out, T, C, H,
                  eps, threads);
}
