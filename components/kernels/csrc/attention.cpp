// Softmax attention over whole sequences, for a vision transformer's frames: scores, softmax and mixture per block of
// queries, so that no score leaves the cache. Shape letters: N frames, H heads, M tokens, K head width.
//
// bfloat16 multiplies on the tile unit (AMX) where there is one, else by vdpbf16ps, else widened; everything between the
// two products is float32.
#if defined(__AVX512F__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int QUERIES = 32;  // per block: two tiles
constexpr int LANES = 16;

using bf16 = uint16_t;

inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

inline __m256i narrow(__m512 x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

inline float value_of(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float value_of(float x) { return x; }

inline __m512 load16(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load16(const bf16* x) { return widen(_mm256_loadu_si256((const __m256i*)x)); }

inline void store16(float* to, __m512 x) { _mm512_storeu_ps(to, x); }
inline void store16(bf16* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, narrow(x)); }

// 2^x for x ≤ 0 by 2^n · p(x - n), n the nearest whole number; relative error 2e-7, or 4e-5 where bfloat16 takes it
template <class Operand>
inline __m512 exp2_16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // subnormal numbers are slow; in this order a NaN stays one
    const __m512 n = _mm512_roundscale_ps(x, 8);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.6181291e-3f);
    if constexpr (std::is_same_v<Operand, float>) {
        p = _mm512_set1_ps(1.5403530e-4f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3333558e-3f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6181291e-3f));
    }
    for (float c : {5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

// ---- the two products of one block of queries ------------------------------------------------------------------
//
// `Operand` is what is multiplied: bf16 in pairs, or float. A right-hand side [depth][columns] is packed so that 16
// columns of one step of depth (one value, or a pair) fill a vector: [columns / 16][depth / step][16][step].

struct Wide {
    using Operand = float;
    static constexpr int step = 1;
    static constexpr int depth_unit = 1;
    static __m512 multiply(__m512 sum, const float* left, const float* right) {
        return _mm512_fmadd_ps(_mm512_set1_ps(*left), _mm512_loadu_ps(right), sum);
    }
};

#ifdef __AVX512BF16__
struct Pairs {
    using Operand = bf16;
    static constexpr int step = 2;
    static constexpr int depth_unit = 2;
    static __m512 multiply(__m512 sum, const bf16* left, const bf16* right) {
        int pair;
        std::memcpy(&pair, left, 4);
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(right));
    }
};
#endif

// [QUERIES][depth] × packed [columns / 16][depth] → [QUERIES][columns] float
template <class Unit>
struct Vectors {
    using Operand = typename Unit::Operand;
    static constexpr int step = Unit::step;
    static constexpr int depth_unit = Unit::depth_unit;
    static constexpr int rows = 8;  // 8 × 2 sums stay in registers

    static void begin() {}
    static void end() {}

    static void product(const Operand* left, int left_stride, const Operand* right, int depth, float* out, int columns) {
        const int steps = depth / step;
        for (int c = 0; c < columns; c += 2 * LANES) {
            const Operand* first = right + size_t(c / LANES) * steps * LANES * step;
            const Operand* second = first + size_t(steps) * LANES * step;
            for (int q = 0; q < QUERIES; q += rows) {
                __m512 sums[rows][2];
                for (auto& sum : sums) sum[0] = sum[1] = _mm512_setzero_ps();
                for (int s = 0; s < steps; ++s) {
#pragma GCC unroll 8
                    for (int i = 0; i < rows; ++i) {
                        const Operand* at = left + size_t(q + i) * left_stride + s * step;
                        sums[i][0] = Unit::multiply(sums[i][0], at, first + size_t(s) * LANES * step);
                        sums[i][1] = Unit::multiply(sums[i][1], at, second + size_t(s) * LANES * step);
                    }
                }
                for (int i = 0; i < rows; ++i) {
                    _mm512_storeu_ps(out + size_t(q + i) * columns + c, sums[i][0]);
                    _mm512_storeu_ps(out + size_t(q + i) * columns + c + LANES, sums[i][1]);
                }
            }
        }
    }
};

#ifdef __AMX_BF16__
struct Tiles {
    using Operand = bf16;
    static constexpr int step = 2;
    static constexpr int depth_unit = 32;

    static void begin() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
    static void end() { _tile_release(); }

    static void product(const bf16* left, int left_stride, const bf16* right, int depth, float* out, int columns) {
        const size_t column_tile = size_t(depth) * LANES;
        for (int c = 0; c < columns; c += 2 * LANES) {
            const bf16* first = right + size_t(c / LANES) * column_tile;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int d = 0; d < depth; d += 32) {
                _tile_loadd(4, left + d, left_stride * 2);
                _tile_loadd(5, left + d + size_t(16) * left_stride, left_stride * 2);
                _tile_loadd(6, first + size_t(d) * LANES, 64);
                _tile_loadd(7, first + column_tile + size_t(d) * LANES, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, out + c, columns * 4);
            _tile_stored(1, out + c + LANES, columns * 4);
            _tile_stored(2, out + size_t(16) * columns + c, columns * 4);
            _tile_stored(3, out + size_t(16) * columns + c + LANES, columns * 4);
        }
    }
};

bool tiles_allowed() {
    // the kernel of the system wants to be asked before a process keeps tiles: ARCH_REQ_XCOMP_PERM for tile data
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed;
}
#endif

struct View {  // [N, M, H, K], the last one contiguous
    const void* data;
    int64_t frame, token, head;
};

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class To, class From>
inline To converted(From x) {
    if constexpr (std::is_same_v<To, From>) {
        return x;
    } else {
        return value_of(x);
    }
}

// rows [count][width] → packed with the rows as columns: [rows / 16][width / step][16][step], zeros beyond
template <class M, class T>
void pack_rows(const T* x, int64_t stride, int count, int width, int padded_count, int depth, typename M::Operand* to) {
    using Operand = typename M::Operand;
    const __m512i rows = _mm512_mullo_epi32(_mm512_set1_epi32(int(stride * sizeof(T))),
                                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int block = 0; block < padded_count; block += LANES, to += size_t(depth) * LANES) {
        // what is one step of depth is 32 bits of a row
        if (std::is_same_v<T, Operand> && block + LANES <= count && width == depth && stride * sizeof(T) < (1 << 26)) {
            const T* first = x + block * stride;
            for (int d = 0; d < depth; d += M::step)
                _mm512_storeu_si512(to + size_t(d) * LANES, _mm512_i32gather_epi32(rows, (const void*)(first + d), 1));
            continue;
        }
        for (int j = 0; j < LANES; ++j) {
            const int row = block + j;
            for (int d = 0; d < depth; ++d) {
                Operand value = row < count && d < width ? converted<Operand>(x[row * stride + d]) : Operand(0);
                to[(size_t(d / M::step) * LANES + j) * M::step + d % M::step] = value;
            }
        }
    }
}

// rows [count][width] → packed with the rows as depth: [width / 16][rows / step][16][step], zeros beyond
template <class M, class T>
void pack_columns(const T* x, int64_t stride, int count, int width, int depth, int padded_width, typename M::Operand* to) {
    using Operand = typename M::Operand;
    for (int row = 0; row < depth; row += M::step) {
        for (int c = 0; c < padded_width; c += LANES) {
            Operand* tile = to + size_t(c / LANES) * depth * LANES + size_t(row) * LANES;
            const T* from = x + row * stride + c;
            if (row + M::step <= count && c + LANES <= width) {
                if constexpr (M::step == 2) {
                    const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
                    const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + stride)));
                    _mm512_storeu_si512(tile, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
                } else {
                    _mm512_storeu_ps(tile, load16(from));
                }
                continue;
            }
            for (int j = 0; j < LANES; ++j)
                for (int s = 0; s < M::step; ++s) {
                    const bool inside = row + s < count && c + j < width;
                    tile[j * M::step + s] = inside ? converted<Operand>(from[s * stride + j]) : Operand(0);
                }
        }
    }
}

// scores [QUERIES][keys] → 2^(scale · score + bias - max) and what to divide by
template <class Operand>
void soften(const float* scores, const float* bias, float scale, int keys, int rows, Operand* weights, float* rest) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int q = 0; q < rows; ++q) {
        const float* row = scores + size_t(q) * keys;
        auto score = [&](int j) { return _mm512_fmadd_ps(_mm512_loadu_ps(row + j), factor, _mm512_loadu_ps(bias + j)); };
        __m512 top[2] = {score(0), score(LANES)};
        for (int j = 2 * LANES; j < keys; j += 2 * LANES)
            for (int i = 0; i < 2; ++i) top[i] = _mm512_max_ps(top[i], score(j + i * LANES));
        const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(top[0], top[1])));
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int j = 0; j < keys; j += 2 * LANES)
            for (int i = 0; i < 2; ++i) {
                const __m512 x = exp2_16<Operand>(_mm512_sub_ps(score(j + i * LANES), peak));
                sum[i] = _mm512_add_ps(sum[i], x);
                store16(weights + size_t(q) * keys + j + i * LANES, x);
            }
        rest[q] = 1.0f / _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
    }
}

template <class M, class T>
void attend(const View& query, const View& key, const View& value, const float* bias, T* out, int64_t frames, int heads,
            int tokens, int width, int threads) {
    using Operand = typename M::Operand;
    const int keys = round_up(tokens, 32);
    const int depth = round_up(width, std::max(M::depth_unit, 2));
    const int columns = round_up(width, 32);
    const float log2e = 1.44269504f;  // powers of two are cheaper than those of e
    const float scale = log2e / std::sqrt(float(width));
#pragma omp parallel num_threads(threads)
    {
        auto scratch = [](size_t bytes) { return std::aligned_alloc(64, round_up(bytes, 64)); };
        auto* keys_packed = (Operand*)scratch(sizeof(Operand) * keys * depth);
        auto* values_packed = (Operand*)scratch(sizeof(Operand) * keys * columns);
        auto* block = (Operand*)scratch(sizeof(Operand) * QUERIES * depth);
        auto* scores = (float*)scratch(4 * size_t(QUERIES) * keys);
        auto* weights = (Operand*)scratch(sizeof(Operand) * QUERIES * keys);
        auto* mixed = (float*)scratch(4 * QUERIES * columns);
        auto* shift = (float*)scratch(4 * keys);
        float rest[QUERIES];
        std::memset(block, 0, sizeof(Operand) * QUERIES * depth);
        std::memset(weights, 0, sizeof(Operand) * QUERIES * keys);
        M::begin();
#pragma omp for schedule(static)
        for (int64_t task = 0; task < frames * heads; ++task) {
            const int64_t n = task / heads, h = task % heads;
            auto at = [&](const View& view) { return (const T*)view.data + n * view.frame + h * view.head; };
            pack_rows<M>(at(key), key.token, tokens, width, keys, depth, keys_packed);
            pack_columns<M>(at(value), value.token, tokens, width, keys, columns, values_packed);
            for (int j = 0; j < keys; ++j)
                shift[j] = j >= tokens ? -std::numeric_limits<float>::infinity() : bias ? bias[n * tokens + j] * log2e : 0.0f;
            for (int start = 0; start < tokens; start += QUERIES) {
                const int rows = std::min(QUERIES, tokens - start);
                for (int q = 0; q < rows; ++q) {
                    const T* row = at(query) + (start + q) * query.token;
                    for (int d = 0; d < width; ++d) block[q * depth + d] = converted<Operand>(row[d]);
                }
                M::product(block, depth, keys_packed, depth, scores, keys);
                soften(scores, shift, scale, keys, rows, weights, rest);
                M::product(weights, keys, values_packed, keys, mixed, columns);
                for (int q = 0; q < rows; ++q) {
                    T* to = out + ((n * tokens + start + q) * heads + h) * width;
                    const __m512 factor = _mm512_set1_ps(rest[q]);
                    int c = 0;
                    for (; c + LANES <= width; c += LANES)
                        store16(to + c, _mm512_mul_ps(_mm512_loadu_ps(mixed + q * columns + c), factor));
                    if (c < width) {
                        T tail[LANES];
                        store16(tail, _mm512_mul_ps(_mm512_loadu_ps(mixed + q * columns + c), factor));
                        std::memcpy(to + c, tail, sizeof(T) * (width - c));
                    }
                }
            }
        }
        M::end();
        for (void* memory : {(void*)keys_packed, (void*)values_packed, (void*)block, (void*)scores, (void*)weights,
                             (void*)mixed, (void*)shift})
            std::free(memory);
    }
}

}  // namespace

extern "C" int attention(const void* query, const void* key, const void* value, const int64_t* strides,
                         const float* bias, void* out, int64_t frames, int64_t heads, int64_t tokens, int64_t width,
                         int narrow_values, int threads) {
    const View q{query, strides[0], strides[1], strides[2]}, k{key, strides[3], strides[4], strides[5]},
        v{value, strides[6], strides[7], strides[8]};
    if (!narrow_values) {
        attend<Vectors<Wide>>(q, k, v, bias, (float*)out, frames, heads, tokens, width, threads);
        return 0;
    }
#ifdef __AMX_BF16__
    if (tiles_allowed()) {
        attend<Tiles>(q, k, v, bias, (bf16*)out, frames, heads, tokens, width, threads);
        return 0;
    }
#endif
#ifdef __AVX512BF16__
    attend<Vectors<Pairs>>(q, k, v, bias, (bf16*)out, frames, heads, tokens, width, threads);
#else
    attend<Vectors<Wide>>(q, k, v, bias, (bf16*)out, frames, heads, tokens, width, threads);
#endif
    return 0;
}

extern "C" int attention_supported() { return 1; }

#else

extern "C" int attention_supported() { return 0; }

#endif
