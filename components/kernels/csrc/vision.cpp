// What stands between the matrix products of a vision transformer, each in one pass over its memory.
// Shape letters: N frames, M tokens before a merge, G after it, H heads, K head width, W width.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));
using bf16 = uint16_t;

inline Floats all(float x) { return Floats{} + x; }

inline Floats load(const float* x) { return *(const Floats*)x; }
inline Floats load(const bf16* x) { return (Floats)(__builtin_convertvector(*(const Halves*)x, Words) << 16); }

inline void store(float* to, Floats x) { *(Floats*)to = x; }
inline void store(bf16* to, Floats x) {
#ifdef __AVX512BF16__
    const __m256i narrow = (__m256i)_mm512_cvtneps_pbh((__m512)x);
    std::memcpy(to, &narrow, sizeof narrow);
    return;
#endif
    const Words bits = (Words)x;
    const Words rounded = bits + (((bits >> 16) & 1u) + 0x7fffu);
    const Words nan = (Words)(x != x);  // rounding must not turn one into infinity
    *(Halves*)to = __builtin_convertvector(((rounded & ~nan) | ((bits | 0x400000u) & nan)) >> 16, Halves);
}

// 2^x for |x| ≤ 126; relative error 2e-7, or 4e-5 where bfloat16 takes it
template <class T>
inline Floats exp2_of(Floats x) {
    const Floats magic = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    const Floats shifted = x + magic;
    const Floats r = x - (shifted - magic);
    Floats p = all(9.6181291e-3f);
    if constexpr (sizeof(T) == 4) {
        p = all(1.5403530e-4f) * r + 1.3333558e-3f;
        p = p * r + 9.6181291e-3f;
    }
    for (float c : {5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = p * r + c;
    return (Floats)((Ints)p + ((Ints)shifted << 23));  // the whole number stands in the low bits
}

// 1 / x for x ≥ 1; relative error 6e-5 where bfloat16 takes it
template <class T>
inline Floats inverse(Floats x) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 2) return (Floats)_mm512_rcp14_ps((__m512)x);
#endif
    return 1.0f / x;
}

inline Floats limited(Floats x, float low, float high) {
    x = x < low ? all(low) : x;
    return x > high ? all(high) : x;  // comparisons with a NaN are false, so it stays
}

// GELU by its tanh approximation: x · sigmoid(2 √(2/π) (x + 0.044715 x³))
template <class T>
inline Floats gelu(Floats x) {
    const float scale = -2 * 0.7978845608f * 1.44269504f;
    const Floats u = x * (scale + (scale * 0.044715f) * x * x);
    return x * inverse<T>(1.0f + exp2_of<T>(limited(u, -126.0f, 126.0f)));
}

template <class T>
void gelu_rows(T* x, int64_t count, int threads) {
    const int64_t piece = 4096;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t start = 0; start < count; start += piece) {
        const int64_t end = start + piece < count ? start + piece : count;
        int64_t i = start;
        for (; i + LANES <= end; i += LANES) store(x + i, gelu<T>(load(x + i)));
        if (i < end) {
            T tail[LANES] = {};
            std::memcpy(tail, x + i, sizeof(T) * (end - i));
            store(tail, gelu<T>(load(tail)));
            std::memcpy(x + i, tail, sizeof(T) * (end - i));
        }
    }
}

template <class T>
void merge_rows(const T* x, const float* size, const int64_t* survivors, const int64_t* sources, const int64_t* into,
                T* out, int64_t frames, int64_t tokens, int64_t kept, int64_t removed, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<int64_t> first(kept), next(removed);  // the sources of every survivor, as lists
        std::vector<float> sum(width + LANES);
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < frames; ++n)
        for (int64_t part = 0; part < threads; ++part) {  // of the survivors, so that one frame occupies all threads
            const T* from = x + n * tokens * width;
            const float* weight = size + n * tokens;
            std::fill(first.begin(), first.end(), -1);
            for (int64_t s = removed - 1; s >= 0; --s) {
                next[s] = first[into[n * removed + s]];
                first[into[n * removed + s]] = s;
            }
            for (int64_t g = kept * part / threads; g < kept * (part + 1) / threads; ++g) {
                const int64_t own = survivors[n * kept + g];
                T* to = out + (n * kept + g) * width;
                if (first[g] < 0) {
                    std::memcpy(to, from + own * width, sizeof(T) * width);
                    continue;
                }
                float total = weight[own];
                for (int64_t s = first[g]; s >= 0; s = next[s]) total += weight[sources[n * removed + s]];
                auto add = [&](int64_t token, bool begin) {
                    const T* row = from + token * width;
                    const float share = weight[token] / total;
                    for (int64_t c = 0; c + LANES <= width; c += LANES)
                        store(&sum[c], (begin ? all(0) : load(&sum[c])) + share * load(row + c));
                    for (int64_t c = width / LANES * LANES; c < width; ++c) {
                        T tail[LANES] = {row[c]};
                        sum[c] = (begin ? 0 : sum[c]) + share * load(tail)[0];
                    }
                };
                add(own, true);
                for (int64_t s = first[g]; s >= 0; s = next[s]) add(sources[n * removed + s], false);
                int64_t c = 0;
                for (; c + LANES <= width; c += LANES) store(to + c, load(&sum[c]));
                T tail[LANES];
                store(tail, load(&sum[c]));
                std::memcpy(to + c, tail, sizeof(T) * (width - c));
            }
        }
    }
}

template <class T>
void head_mean(const T* keys, int64_t frame, int64_t token, int64_t head, float* out, int64_t frames, int64_t tokens,
               int64_t heads, int64_t width, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t n = 0; n < frames; ++n)
        for (int64_t m = 0; m < tokens; ++m) {
            const T* from = keys + n * frame + m * token;
            float* to = out + (n * tokens + m) * width;
            float square = 0;
            for (int64_t c = 0; c < width; c += LANES) {
                const int64_t lanes = width - c < LANES ? width - c : LANES;
                Floats sum = {};
                for (int64_t h = 0; h < heads; ++h) {
                    if (lanes == LANES) {
                        sum += load(from + h * head + c);
                    } else {
                        T tail[LANES] = {};
                        std::memcpy(tail, from + h * head + c, sizeof(T) * lanes);
                        sum += load(tail);
                    }
                }
                for (int64_t j = 0; j < lanes; ++j) {
                    to[c + j] = sum[j] / heads;
                    square += to[c + j] * to[c + j];
                }
            }
            const float length = std::sqrt(square);
            const float scale = 1.0f / (length > 1e-12f ? length : 1e-12f);
            for (int64_t c = 0; c < width; ++c) to[c] *= scale;
        }
}

// The largest of a row and the first place that has it; a NaN is larger than all, as in torch.
struct Best {
    float value;
    int64_t place;
    bool operator>(const Best& other) const {
        return std::isnan(value) ? !std::isnan(other.value) : value > other.value;
    }
};

Best best_of(const float* row, int64_t count) {
    Floats top = all(-INFINITY);
    Ints nan = {};
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
        const Floats x = load(row + c);
        top = x > top ? x : top;
        nan |= x != x;
    }
    Best best = {-INFINITY, 0};
    bool some = false;
    for (int lane = 0; lane < LANES; ++lane) {
        best.value = top[lane] > best.value ? top[lane] : best.value;
        some |= nan[lane] != 0;
    }
    for (; c < count; ++c) {
        best.value = row[c] > best.value ? row[c] : best.value;
        some |= std::isnan(row[c]);
    }
    if (some) best.value = NAN;
    while (some ? !std::isnan(row[best.place]) : row[best.place] != best.value) ++best.place;
    return best;
}

bool all_below(const int64_t* index, int64_t count, int64_t end) {
    return std::all_of(index, index + count, [end](int64_t i) { return 0 <= i && i < end; });
}

}  // namespace

// scores [N, A, B] of even with odd tokens → the `removed` even tokens that are most like an odd one go into that one:
// survivors [N, A + B - r], the other even tokens and then the odd ones; sources and into [N, r]
extern "C" void match_pairs(const float* scores, int64_t* survivors, int64_t* sources, int64_t* into, int64_t frames,
                            int64_t even, int64_t odd, int64_t removed, int threads) {
    const int64_t rest = even - removed;
#pragma omp parallel num_threads(threads)
    {
        std::vector<Best> best(even);
        std::vector<int64_t> ranked(even);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < frames; ++n) {
            for (int64_t a = 0; a < even; ++a) best[a] = best_of(scores + (n * even + a) * odd, odd);
            std::iota(ranked.begin(), ranked.end(), 0);
            std::stable_sort(ranked.begin(), ranked.end(), [&](int64_t a, int64_t b) { return best[a] > best[b]; });
            for (int64_t s = 0; s < removed; ++s) {
                sources[n * removed + s] = 2 * ranked[s];
                into[n * removed + s] = rest + best[ranked[s]].place;
            }
            std::sort(ranked.begin() + removed, ranked.end());
            int64_t* kept = survivors + n * (rest + odd);
            for (int64_t g = 0; g < rest; ++g) kept[g] = 2 * ranked[removed + g];
            for (int64_t b = 0; b < odd; ++b) kept[rest + b] = 2 * b + 1;
        }
    }
}

// rows [N, M] of `bytes`, sizes [N, M] and owners [N, P], read in an order [N, M] of each frame's tokens; gives 0 where
// that is no permutation, or an owner lies outside
extern "C" int64_t reorder(const char* rows, const float* size, const int64_t* owner, const int64_t* order, char* ordered,
                        float* sizes, int64_t* followed, int64_t frames, int64_t tokens, int64_t patches,
                        int64_t bytes) {
    if (!all_below(order, frames * tokens, tokens) || !all_below(owner, frames * patches, tokens)) return 0;
    std::vector<int64_t> place(tokens);
    for (int64_t n = 0; n < frames; ++n) {
        std::fill(place.begin(), place.end(), -1);
        for (int64_t m = 0; m < tokens; ++m) {
            const int64_t from = order[n * tokens + m];
            if (place[from] >= 0) return 0;
            place[from] = m;
            sizes[n * tokens + m] = size[n * tokens + from];
            std::memcpy(ordered + (n * tokens + m) * bytes, rows + (n * tokens + from) * bytes, bytes);
        }
        for (int64_t p = 0; p < patches; ++p) followed[n * patches + p] = place[owner[n * patches + p]];
    }
    return 1;
}

// in place
extern "C" void gelu_tanh(void* x, int64_t count, int narrow, int threads) {
    narrow ? gelu_rows((bf16*)x, count, threads) : gelu_rows((float*)x, count, threads);
}

// [N, M, W], sizes [N, M] and owners [N, P] of a merge as above → the size-weighted means [N, G, W], sizes added up
// [N, G], owners followed [N, P]; gives 0 where an index lies outside
extern "C" int64_t absorb(const void* x, const float* size, const int64_t* owner, const int64_t* survivors,
                          const int64_t* sources, const int64_t* into, void* out, float* sizes, int64_t* followed,
                          int64_t frames, int64_t tokens, int64_t kept, int64_t patches, int64_t width, int narrow,
                          int threads) {
    const int64_t removed = tokens - kept;
    if (!all_below(survivors, frames * kept, tokens) || !all_below(sources, frames * removed, tokens) ||
        !all_below(into, frames * removed, kept) || !all_below(owner, frames * patches, tokens))
        return 0;
    std::vector<int64_t> target(tokens);
    for (int64_t n = 0; n < frames; ++n) {
        for (int64_t g = 0; g < kept; ++g) {
            target[survivors[n * kept + g]] = g;
            sizes[n * kept + g] = size[n * tokens + survivors[n * kept + g]];
        }
        for (int64_t s = 0; s < removed; ++s) {
            target[sources[n * removed + s]] = into[n * removed + s];
            sizes[n * kept + into[n * removed + s]] += size[n * tokens + sources[n * removed + s]];
        }
        for (int64_t p = 0; p < patches; ++p) followed[n * patches + p] = target[owner[n * patches + p]];
    }
    narrow ? merge_rows((const bf16*)x, size, survivors, sources, into, (bf16*)out, frames, tokens, kept, removed, width,
                        threads)
           : merge_rows((const float*)x, size, survivors, sources, into, (float*)out, frames, tokens, kept, removed,
                        width, threads);
    return 1;
}

// [N, M, H, K] by its strides → [N, M, K]: the mean over the heads, of length one
extern "C" void mean_direction(const void* keys, int64_t frame, int64_t token, int64_t head, float* out,
                               int64_t frames, int64_t tokens, int64_t heads, int64_t width, int narrow, int threads) {
    if (narrow)
        head_mean((const bf16*)keys, frame, token, head, out, frames, tokens, heads, width, threads);
    else
        head_mean((const float*)keys, frame, token, head, out, frames, tokens, heads, width, threads);
}
