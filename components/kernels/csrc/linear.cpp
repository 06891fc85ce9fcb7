// y = x · wᵀ on the tile unit of a CPU (AMX), for weights in bfloat16, float32 or int8 with one scale per output.
//
// Shape letters: T positions, K inputs, N outputs. A panel is 32 rows wide and lies in memory as the tile unit reads it:
// per step of 32 inputs one or several parts, each two tiles of 1 KB. A thread packs one panel of weights, which fits
// the first cache, and multiplies it with every panel of positions, which were packed before by all threads.
//
// float32 is split into three bfloat16 parts that hold its 24 bits exactly. Of the nine products of parts the six
// largest are summed, the small ones first, so that the rounding of the sum is that of one product.

#include <omp.h>

#include "gemv.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <sys/syscall.h>
#include <unistd.h>

namespace {

using namespace aurora;

constexpr int64_t PANEL = 32, STEP = 32, TILE = 512;  // rows, inputs, bfloat16 per tile
typedef __m512i Line;                                 // 32 bfloat16

// the compiler does not know that tile instructions read memory
#define FENCE asm volatile("" ::: "memory")

enum Activation { NONE, SQUARED_RELU };

template <class E>
constexpr int parts_of = 1;
template <>
constexpr int parts_of<float> = 3;

INLINE Line narrow_pair(__m512 low, __m512 high) { return (Line)_mm512_cvtne2ps_pbh(high, low); }
INLINE __m512 widen_half(__m256i x) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }

// The first n of 32 values as bfloat16 parts whose sum they are; zeros after them.
INLINE void read_line(const bf16* p, int64_t n, Line* parts) {
    parts[0] = n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(n > 0 ? (1u << n) - 1 : 0, p);
}
INLINE void read_line(const int8_t* p, int64_t n, Line* parts) {
    const __m256i x = _mm256_maskz_loadu_epi8(n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0, p);
    parts[0] = narrow_pair(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x))),
                           _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1))));
}
INLINE void read_line(const float* p, int64_t n, Line* parts) {
    const uint32_t some = n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0;
    __m512 low = _mm512_maskz_loadu_ps(some & 0xffff, p), high = _mm512_maskz_loadu_ps(some >> 16, p + 16);
#pragma GCC unroll 3
    for (int part = 0; part < 3; ++part) {
        parts[part] = narrow_pair(low, high);
        low = _mm512_sub_ps(low, widen_half(_mm512_castsi512_si256(parts[part])));
        high = _mm512_sub_ps(high, widen_half(_mm512_extracti64x4_epi64(parts[part], 1)));
    }
}

// 16 rows of 16 words, transposed in place.
INLINE void transpose_words(Line* r) {
    Line t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// A panel of rows, one step of inputs: as the left factor of a product rows stay rows.
template <class E>
INLINE void pack_left(const E* from, int64_t stride, int64_t rows, int64_t inputs, bf16* to) {
    constexpr int P = parts_of<E>;
    for (int64_t row = 0; row < PANEL; ++row) {
        Line parts[P];
        read_line(from + std::min(row, rows - 1) * stride, row < rows ? inputs : 0, parts);
        for (int part = 0; part < P; ++part) _mm512_store_si512(to + part * 2 * TILE + row * STEP, parts[part]);
    }
}

// As the right factor, pairs of inputs are rows.
template <class E>
INLINE void pack_right(const E* from, int64_t stride, int64_t rows, int64_t inputs, bf16* to) {
    constexpr int P = parts_of<E>;
    for (int64_t tile = 0; tile < 2; ++tile) {
        Line lines[P][16];
        for (int64_t i = 0; i < 16; ++i) {
            const int64_t row = tile * 16 + i;
            Line parts[P];
            read_line(from + std::min(row, rows - 1) * stride, row < rows ? inputs : 0, parts);
            for (int part = 0; part < P; ++part) lines[part][i] = parts[part];
        }
        for (int part = 0; part < P; ++part) {
            transpose_words(lines[part]);
            for (int64_t i = 0; i < 16; ++i)
                _mm512_store_si512(to + (part * 2 + tile) * TILE + i * STEP, lines[part][i]);
        }
    }
}

// The same of a transposed matrix [K, N]: two rows of inputs are woven into pairs.
template <class E>
INLINE void pack_right_transposed(const E* from, int64_t stride, int64_t rows, int64_t inputs, bf16* to) {
    constexpr int P = parts_of<E>;
    const Line order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                        5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const Line rest = _mm512_add_epi16(order, _mm512_set1_epi16(16));
    for (int64_t pair = 0; pair < 16; ++pair) {
        Line even[P], odd[P];
        read_line(from + std::min(2 * pair, inputs - 1) * stride, 2 * pair < inputs ? rows : 0, even);
        read_line(from + std::min(2 * pair + 1, inputs - 1) * stride, 2 * pair + 1 < inputs ? rows : 0, odd);
        for (int part = 0; part < P; ++part) {
            bf16* tile = to + part * 2 * TILE + pair * STEP;
            _mm512_store_si512(tile, _mm512_permutex2var_epi16(even[part], order, odd[part]));
            _mm512_store_si512(tile + TILE, _mm512_permutex2var_epi16(even[part], rest, odd[part]));
        }
    }
}

// Tiles 0 to 3 hold the sums, 4 and 5 a panel of weights, 6 and 7 one of positions. Sum 2 i + j belongs to rows i of the
// left and j of the right panel.
template <bool WEIGHTS_LEFT>
INLINE void multiply_tiles() {
    if (WEIGHTS_LEFT) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    } else {
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(1, 6, 5);
        _tile_dpbf16ps(2, 7, 4);
        _tile_dpbf16ps(3, 7, 5);
    }
}

INLINE void load_weights(const bf16* p) {
    _tile_loadd(4, p, 64);
    _tile_loadd(5, p + TILE, 64);
}
INLINE void load_positions(const bf16* p) {
    _tile_loadd(6, p, 64);
    _tile_loadd(7, p + TILE, 64);
}

template <int PW, int PX, bool WEIGHTS_LEFT>
INLINE void multiply_panels(const bf16* w, const bf16* x, int64_t steps) {
    if constexpr (PX == 3) {
        for (int64_t s = 0; s < steps; ++s) {
            const bf16 *ws = w + s * PW * 2 * TILE, *xs = x + s * PX * 2 * TILE;
            load_weights(ws);
            load_positions(xs + 4 * TILE);
            multiply_tiles<WEIGHTS_LEFT>();
            load_positions(xs + 2 * TILE);
            multiply_tiles<WEIGHTS_LEFT>();
            if constexpr (PW == 3) {
                load_weights(ws + 2 * TILE);
                multiply_tiles<WEIGHTS_LEFT>();
                load_positions(xs);
                multiply_tiles<WEIGHTS_LEFT>();
                load_weights(ws + 4 * TILE);
                multiply_tiles<WEIGHTS_LEFT>();
            }
        }
    }
    for (int64_t s = 0; s < steps; ++s) {
        load_weights(w + s * PW * 2 * TILE);
        load_positions(x + s * PX * 2 * TILE);
        for (int64_t i = 0; i < 2 * TILE; i += 32) _mm_prefetch(x + (s + 1) * PX * 2 * TILE + i, _MM_HINT_T0);
        multiply_tiles<WEIGHTS_LEFT>();
    }
}

INLINE void store_sums(float* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
    FENCE;
}

struct Task {
    const void *x, *w;
    const float *scale, *bias;  // [N] each, or none
    void* y;
    int64_t T, N, K, x_stride, w_stride, y_stride;
    int activation, threads;
};

INLINE void write_line(bf16* to, __m512 low, __m512 high, uint32_t some) {
    _mm512_mask_storeu_epi16(to, some, narrow_pair(low, high));
}
INLINE void write_line(float* to, __m512 low, __m512 high, uint32_t some) {
    _mm512_mask_storeu_ps(to, some & 0xffff, low);
    _mm512_mask_storeu_ps(to + 16, some >> 16, high);
}

// Sums [2][2][16][16] of a panel of weights and one of positions → y
template <class E, bool WEIGHTS_LEFT>
INLINE void finish(const Task& task, float* sums, int64_t n, int64_t t) {
    const int64_t outputs = std::min(PANEL, task.N - n), positions = std::min(PANEL, task.T - t);
    const uint32_t some = outputs == 32 ? ~0u : (1u << outputs) - 1;
    const __m512 one = _mm512_set1_ps(1), none = _mm512_setzero_ps();
    __m512 scale[2] = {one, one}, bias[2] = {none, none};
    for (int i = 0; i < 2; ++i) {
        const uint16_t half = some >> 16 * i;
        if (task.scale) scale[i] = _mm512_maskz_loadu_ps(half, task.scale + n + 16 * i);
        if (task.bias) bias[i] = _mm512_maskz_loadu_ps(half, task.bias + n + 16 * i);
    }
    for (int64_t j = 0; j < 2; ++j) {
        Line rows[2][16];  // [outputs / 16][positions]
        for (int64_t i = 0; i < 2; ++i) {
            const float* tile = sums + (WEIGHTS_LEFT ? 2 * i + j : 2 * j + i) * 256;
            for (int64_t r = 0; r < 16; ++r) rows[i][r] = _mm512_load_si512(tile + 16 * r);
            if (WEIGHTS_LEFT) transpose_words(rows[i]);
        }
        for (int64_t r = 0; r < std::min<int64_t>(16, positions - 16 * j); ++r) {
            __m512 value[2];
            for (int i = 0; i < 2; ++i) {
                value[i] = _mm512_fmadd_ps((__m512)rows[i][r], scale[i], bias[i]);
                if (task.activation == SQUARED_RELU) {
                    // a NaN stays one: max gives its second operand then
                    value[i] = _mm512_max_ps(none, value[i]);
                    value[i] = _mm512_mul_ps(value[i], value[i]);
                }
            }
            write_line((E*)task.y + (t + 16 * j + r) * task.y_stride + n, value[0], value[1], some);
        }
    }
}

// Memory of a thread, kept between calls.
class Memory {
  public:
    void* at_least(int64_t bytes) {
        if (bytes > size_) {
            free(start_);
            size_ = round_up(bytes, 4096);
            start_ = aligned_alloc(4096, size_);
        }
        return start_;
    }
    ~Memory() { free(start_); }

  private:
    void* start_ = nullptr;
    int64_t size_ = 0;
};

template <class E, class WE, bool WEIGHTS_LEFT>
struct Product {
    static constexpr int PW = parts_of<WE>, PX = parts_of<E>;
    static constexpr int64_t DEPTH = PX == 1 ? 256 : 128;         // inputs multiplied before sums go to memory
    static constexpr int64_t POSITIONS = 512;                  // positions multiplied together
    static constexpr int64_t MOST_PANELS = 8;                     // of weights, whose sums a thread keeps
    static constexpr int64_t depth = DEPTH / STEP;
    static constexpr int64_t WEIGHT_STEP = PW * 2 * TILE, POSITION_STEP = PX * 2 * TILE;

    const Task& task;
    const int64_t steps = (task.K + STEP - 1) / STEP;

    INLINE void pack_positions(bf16* packed, int64_t t, int64_t step) const {
        const E* from = (const E*)task.x + t * task.x_stride + step * STEP;
        const int64_t rows = std::min(PANEL, task.T - t), inputs = std::min(STEP, task.K - step * STEP);
        if (WEIGHTS_LEFT)
            pack_right(from, task.x_stride, rows, inputs, packed);
        else
            pack_left(from, task.x_stride, rows, inputs, packed);
    }

    const WE* weights_at(int64_t n, int64_t k) const {
        return (const WE*)task.w + (WEIGHTS_LEFT ? n * task.w_stride + k : k * task.w_stride + n);
    }

    void pack_weights(bf16* packed, int64_t n, int64_t first, int64_t count) const {
        const int64_t rows = std::min(PANEL, task.N - n);
        for (int64_t s = first; s < first + count; ++s, packed += WEIGHT_STEP) {
            const int64_t inputs = std::min(STEP, task.K - s * STEP);
            if (WEIGHTS_LEFT)
                pack_left(weights_at(n, s * STEP), task.w_stride, rows, inputs, packed);
            else
                pack_right_transposed(weights_at(n, s * STEP), task.w_stride, rows, inputs, packed);
        }
    }

    // Panels [begin, end) of weights with the packed positions [t, t + positions).
    void block(const bf16* packed, int64_t t, int64_t positions, int64_t begin, int64_t end, bf16* w,
               float* sums) const {
        const int64_t columns = (positions + PANEL - 1) / PANEL;
        for (int64_t first = 0; first < steps; first += depth) {
            const int64_t count = std::min(depth, steps - first);
            for (int64_t p = begin; p < end; ++p) {
                pack_weights(w, p * PANEL, first, count);
                FENCE;
                for (int64_t c = 0; c < columns; ++c) {
                    float* own = sums + ((p - begin) * columns + c) * 1024;
                    one(w, packed + (first * columns + c * count) * POSITION_STEP, count, own, first == 0);
                    if (first + count == steps) finish<E, WEIGHTS_LEFT>(task, own, p * PANEL, t + c * PANEL);
                }
            }
        }
    }

    INLINE void one(const bf16* w, const bf16* x, int64_t count, float* sums, bool fresh) const {
        if (PX == 1 && !fresh) {
            _tile_loadd(0, sums, 64);
            _tile_loadd(1, sums + 256, 64);
            _tile_loadd(2, sums + 512, 64);
            _tile_loadd(3, sums + 768, 64);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        multiply_panels<PW, PX, WEIGHTS_LEFT>(w, x, count);
        if (PX == 1 || fresh) {
            store_sums(sums);
        } else {  // in float32 a long sum is one of short sums
            alignas(64) float part[1024];
            store_sums(part);
            for (int64_t i = 0; i < 1024; i += 16)
                _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(part + i)));
        }
    }

    void run() const {
        const int64_t columns = (std::min(POSITIONS, task.T) + PANEL - 1) / PANEL;
        const int64_t panels = (task.N + PANEL - 1) / PANEL;
        const int64_t size = std::max<int64_t>(1, std::min(MOST_PANELS, panels / task.threads));
        static thread_local Memory shared, own;
        bf16* packed = (bf16*)shared.at_least(columns * steps * POSITION_STEP * 2);
#pragma omp parallel num_threads(task.threads)
        {
            begin_tiles();
            bf16* weights = (bf16*)own.at_least(DEPTH / STEP * WEIGHT_STEP * 2 + size * columns * 4096);
            float* sums = (float*)(weights + DEPTH / STEP * WEIGHT_STEP);
            for (int64_t t = 0; t < task.T; t += POSITIONS) {
                const int64_t positions = std::min(POSITIONS, task.T - t);
                const int64_t filled = (positions + PANEL - 1) / PANEL;
#pragma omp for schedule(static)
                for (int64_t i = 0; i < filled * steps; ++i) {
                    const int64_t c = i / steps, s = i % steps, first = s / depth * depth;
                    const int64_t count = std::min(depth, steps - first);
                    pack_positions(packed + (first * filled + c * count + s - first) * POSITION_STEP, t + c * PANEL, s);
                }
#pragma omp for schedule(dynamic)
                for (int64_t p = 0; p < panels; p += size)
                    block(packed, t, positions, p, std::min(panels, p + size), weights, sums);
            }
            _tile_release();
        }
    }

    static void begin_tiles() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
};

template <class E, class WE>
void run(const Task& task, bool transposed) {
    if (transposed)
        Product<E, WE, false>{task}.run();
    else
        Product<E, WE, true>{task}.run();
}

}  // namespace

// Whether this process may use the tile unit; asks the kernel for it.
extern "C" int linear_supported() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// x [T, K] in float32 or bfloat16, w [N, K] (or [K, N] when transposed) of the same type or int8 → y [T, N].
extern "C" void linear(const void* x, const void* w, const float* scale, const float* bias, void* y, int64_t T, int64_t N,
                       int64_t K, int64_t x_stride, int64_t w_stride, int64_t y_stride, int is_bf16, int is_int8,
                       int transposed, int activation, int threads) {
    const Task task{x, w, scale, bias, y, T, N, K, x_stride, w_stride, y_stride, activation, threads};
    if (is_bf16)
        is_int8 ? run<bf16, int8_t>(task, transposed) : run<bf16, bf16>(task, transposed);
    else
        is_int8 ? run<float, int8_t>(task, transposed) : run<float, float>(task, transposed);
}

#else

extern "C" int linear_supported() { return 0; }

#endif

namespace {

using namespace aurora;

template <class E, class WE>
void few(const E* x, const Matrix<WE>& w, E* y, int64_t S, int threads) {
    const int64_t vectors = padded_vectors(S);
    std::vector<float> inputs, outputs;
    float *wide = room(inputs, vectors * w.K), *out = room(outputs, vectors * w.N);
    read_row(wide, x, S * w.K);
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads(), unit = 32;
        const int64_t units = (w.N + unit - 1) / unit;
        const int64_t first = std::min(w.N, units * thread / count * unit);
        const int64_t end = std::min(w.N, units * (thread + 1) / count * unit);
        times(w, wide, w.K, S, first, end, out, w.N);
        for (int64_t s = 0; s < S; ++s) write_row(y + s * w.N + first, out + s * w.N + first, end - first);
    }
}

}  // namespace

// The same for a few positions, on any processor.
extern "C" void gemv(const void* x, const void* w, const float* scale, void* y, int64_t S, int64_t N, int64_t K,
                     int is_bf16, int is_int8, int transposed, int threads) {
    const int64_t stride = transposed ? N : K;
    const bool columns = transposed;
    if (is_bf16 && is_int8)
        few((const bf16*)x, Matrix<int8_t>{(const int8_t*)w, scale, N, K, stride, columns}, (bf16*)y, S, threads);
    else if (is_bf16)
        few((const bf16*)x, Matrix<bf16>{(const bf16*)w, nullptr, N, K, stride, columns}, (bf16*)y, S, threads);
    else if (is_int8)
        few((const float*)x, Matrix<int8_t>{(const int8_t*)w, scale, N, K, stride, columns}, (float*)y, S, threads);
    else
        few((const float*)x, Matrix<float>{(const float*)w, nullptr, N, K, stride, columns}, (float*)y, S, threads);
}
