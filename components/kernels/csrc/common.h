// Vectors of the processor's widest set, rows of float32 or bfloat16, and the division of packed rows among threads.
//
// The vectors are those of the compiler (GCC, clang), so one source serves every instruction set.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace aurora {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t hvec __attribute__((vector_size(2 * W), aligned(2), may_alias));

INLINE vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
INLINE void store(float* p, vec x) { *reinterpret_cast<vec*>(p) = x; }
INLINE vec splat(float x) { return x - vec{}; }
constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// e^x for x <= 88, to one unit in the last place; what would be below the smallest normal number is 0 or subnormal.
INLINE vec exp(vec x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which lies in the lowest bits
    const vec low = splat(-104.0f);
#if defined(__AVX512F__)
    const vec bounded = (vec)_mm512_max_ps((__m512)low, (__m512)x);
    const vec n = (vec)_mm512_roundscale_ps((__m512)(bounded * 1.44269504f), 0);
#else
    const vec bounded = x < low ? low : x;
    const vec shifted = bounded * 1.44269504f + magic;
    const vec n = shifted - magic;
#endif
    vec r = bounded - n * 0.693359375f;  // ln 2 in two parts: the first has few bits, so that its product is exact
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const ivec exponent = (((ivec)shifted - (ivec)splat(magic)) + 127) << 23;
    const vec y = p * (vec)exponent;
    return x < splat(-87.0f) ? vec{} : y;
#endif
}

// 1 / x for normal x, to one unit in the last place: a division keeps other arithmetic waiting for its unit.
INLINE vec reciprocal(vec x) {
#if defined(__AVX512F__)
    const vec guess = (vec)_mm512_rcp14_ps((__m512)x);
    return guess + guess * (1.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

template <int... I>
INLINE vec interleave_low(vec a, vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + I % 2 * W)...);
}

template <int... I>
INLINE vec interleave_high(vec a, vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (W / 2 + I / 2 + I % 2 * W)...);
}

// Lane i of the result is the sum of all lanes of x[i]; x is used up.
INLINE vec sum_lanes(vec* x) {
    constexpr std::make_integer_sequence<int, W> lanes{};
#pragma GCC unroll 4
    for (int n = W / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i)
            x[i] = interleave_low(x[i], x[i + n], lanes) + interleave_high(x[i], x[i + n], lanes);
    }
    return x[0];
}

// Room for n floats at the start of a line of the cache: a vector across two of them is read twice.
INLINE float* room(std::vector<float>& held, int64_t n) {
    held.resize(n + 16);
    return (float*)(((uintptr_t)held.data() + 63) / 64 * 64);
}

INLINE float sum(vec x) {
    float lanes[W];
    store(lanes, x);
    for (int n = W / 2; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
    return lanes[0];
}

INLINE float dot(const float* a, const float* b, int64_t padded) {
    vec total{};
    for (int64_t i = 0; i < padded; i += W) total += load(a + i) * load(b + i);
    return sum(total);
}

// to [columns][rows] = from [rows][columns]; strides in elements.
INLINE void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
                      int64_t columns) {
    constexpr int64_t block = 16;
    for (int64_t i0 = 0; i0 < rows; i0 += block)
        for (int64_t j = 0; j < columns; ++j)
            for (int64_t i = i0; i < std::min(rows, i0 + block); ++i) to[j * to_stride + i] = from[i * from_stride + j];
}

// A tile of a state [V][K] in registers: VR values, and keys across the lanes of KC registers.
constexpr int VR = 4, KC = 2;

template <int C>
using Tile = vec[VR][C];

template <int C>
INLINE void load_tile(Tile<C>& s, const float* state, int64_t K) {
#pragma GCC unroll 4
    for (int j = 0; j < VR; ++j)
#pragma GCC unroll 4
        for (int b = 0; b < C; ++b) s[j][b] = load(state + j * K + b * W);
}

template <int C>
INLINE void store_tile(float* state, const Tile<C>& s, int64_t K) {
#pragma GCC unroll 4
    for (int j = 0; j < VR; ++j)
#pragma GCC unroll 4
        for (int b = 0; b < C; ++b) store(state + j * K + b * W, s[j][b]);
}

template <int C>
INLINE void load_keys(vec (&x)[C], const float* row) {
#pragma GCC unroll 4
    for (int b = 0; b < C; ++b) x[b] = load(row + b * W);
}

template <int C>
INLINE void store_keys(float* row, const vec (&x)[C]) {
#pragma GCC unroll 4
    for (int b = 0; b < C; ++b) store(row + b * W, x[b]);
}

struct bf16 {
    uint16_t bits;
};

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
INLINE vec load_wide(const float* p) { return load(p); }
INLINE vec load_wide(const bf16* p) {
    return (vec)(__builtin_convertvector(*reinterpret_cast<const hvec*>(p), uvec) << 16);
}
INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(float x, bf16* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}
INLINE void store_narrow(float* p, vec x) { store(p, x); }
INLINE void store_narrow(bf16* p, vec x) {
    uvec bits = (uvec)x;
    *reinterpret_cast<hvec*>(p) = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, hvec);
}

template <class E>
INLINE void read_row(float* to, const E* from, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, load_wide(from + i));
    for (; i < n; ++i) to[i] = widen(from[i]);
}

template <class E>
INLINE void write_row(E* to, const float* from, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store_narrow(to + i, load(from + i));
    for (; i < n; ++i) narrow(from[i], to + i);
}

// y [n] = (x - mean) / deviation
INLINE void normalise(const float* x, float* y, int64_t n, float eps) {
    float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += x[i];
    const float mean = total / n;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt(squares / n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * factor;
}

template <class E>
INLINE void layer_norm(const float* x, const E* weight, const E* bias, float eps, float* y, int64_t n) {
    normalise(x, y, n, eps);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = y[i] * widen(weight[i]) + widen(bias[i]);
}

// Stores past the caches, for results that are larger than these: no line is read only to be overwritten.
#if defined(__AVX512F__)
INLINE void stream(float* p, vec x) { _mm512_stream_ps(p, (__m512)x); }
#elif defined(__AVX2__)
INLINE void stream(float* p, vec x) { _mm256_stream_ps(p, (__m256)x); }
#elif defined(__SSE2__)
INLINE void stream(float* p, vec x) { _mm_stream_ps(p, (__m128)x); }
#else
INLINE void stream(float* p, vec x) { store(p, x); }
#endif
#if defined(__AVX512F__)
INLINE void stream(bf16* p, vec x) {
    bf16 narrowed[W];
    store_narrow(narrowed, x);
    __m256i bits;
    std::memcpy(&bits, narrowed, sizeof bits);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
}
#else
INLINE void stream(bf16* p, vec x) { store_narrow(p, x); }
#endif

constexpr int64_t LARGE = 4 << 20;  // bytes

template <class E>
INLINE void write_large(E* to, const float* from, int64_t n, int64_t elements) {
    const bool aligned = reinterpret_cast<uintptr_t>(to) % (W * sizeof(E)) == 0;
    if (n % W || !aligned || elements * int64_t(sizeof(E)) < LARGE) return write_row(to, from, n);
    for (int64_t i = 0; i < n; i += W) stream(to + i, load(from + i));
}

// Asks for large pages below a result that has not been written yet: handing out a page costs as much as filling it.
template <class E>
void prepare(E* result, int64_t elements) {
#if defined(__linux__)
    const int64_t page = 2 << 20, start = round_up(reinterpret_cast<int64_t>(result), page);
    const int64_t end = reinterpret_cast<int64_t>(result + elements) / page * page;
    if (result && end - start >= LARGE) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

// The cache lines that will be wanted next. They are fetched one by one between computations: a processor waits for few
// lines at a time. They go into the second cache: positions lie a power of two apart, and would push each other out of
// the first.
class Ahead {
  public:
    template <class E>
    void add(const E* row, int64_t n) {
        for (int64_t i = 0; i < n; i += 64 / int64_t(sizeof(E))) lines_.push_back(row + i);
    }
    INLINE void fetch() {
        if (next_ == lines_.size()) return;
        __builtin_prefetch(lines_[next_++], 0, 2);
    }
    void clear() {
        while (next_ < lines_.size()) fetch();
        lines_.clear();
        next_ = 0;
    }

  private:
    std::vector<const void*> lines_;
    size_t next_ = 0;
};

// A state or gradient that fades away ends in subnormal numbers, which are a hundred times slower than others.
struct FlushSubnormals {
#if defined(__SSE2__)
    unsigned before = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

// Zeroed memory of a thread, kept between calls: `take` hands out pieces of it.
class Scratch {
  public:
    explicit Scratch(int64_t floats) {
        static thread_local std::vector<float> memory;
        if (int64_t(memory.size()) < floats + 16) memory.resize(floats + 16);
        next_ = reinterpret_cast<float*>(round_up(reinterpret_cast<int64_t>(memory.data()), 64));
        std::memset(next_, 0, floats * sizeof(float));
    }
    float* take(int64_t floats) {
        float* taken = next_;
        next_ += floats;
        return taken;
    }

  private:
    float* next_;
};

// What one thread works on: neighbouring heads of a sequence, and of each the part [first, end) of a width.
struct Piece {
    int64_t start, stop;  // positions
    int64_t sequence, head, heads;
    int64_t first, end, part;
};

// A packed row: S sequences, bounds [S + 1], H heads, each cut into parts where there are too few for the threads.
struct Row {
    const int64_t* bounds;
    int64_t sequences, heads, K, V;
    int threads;

    int64_t positions() const { return bounds[sequences]; }
    int64_t length(int64_t sequence) const { return bounds[sequence + 1] - bounds[sequence]; }

    struct Cuts {
        int64_t count, size;
    };

    // The parts, whole units, that a width is cut into: as few as give every thread work.
    Cuts cuts(int64_t width, int64_t unit) const {
        int64_t longest = 0, count = 1;
        for (int64_t s = 0; s < sequences; ++s) longest = std::max(longest, length(s));
        const int64_t most = (width + unit - 1) / unit;
        // the longest sequence must not take much longer than an even share of all
        while (count < most && 4 * longest * threads > 5 * count * positions() * heads) ++count;
        const int64_t size = round_up((width + count - 1) / count, unit);
        return {(width + size - 1) / size, size};
    }

    // work(piece) for all of them, the longest sequences first. Heads are taken together because positions lie pages
    // apart: each chunk of positions looks up its pages once for all the heads of a piece.
    template <class Work>
    void share(int64_t width, int64_t unit, Work work) const {
        const Cuts cut = cuts(width, unit);
        const int64_t most = std::max<int64_t>(1, std::min<int64_t>(16, sequences * heads / threads));
        // as many groups for every thread, where one sequence is all there is
        const int64_t wanted = round_up((heads + most - 1) / most, sequences > 1 ? 1 : threads);
        const int64_t group = (heads + wanted - 1) / wanted, groups = (heads + group - 1) / group;
        std::vector<int64_t> order(sequences);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t item = 0; item < sequences * groups * cut.count; ++item) {
            const FlushSubnormals flush;
            const int64_t part = item % cut.count, head = item / cut.count % groups * group;
            const int64_t sequence = order[item / cut.count / groups], first = part * cut.size;
            work(Piece{bounds[sequence], bounds[sequence + 1], sequence, head, std::min(group, heads - head), first,
                       std::min(width, first + cut.size), part});
#if defined(__SSE2__)
            _mm_sfence();  // streamed results are seen by whoever reads them next
#endif
        }
    }
};

}  // namespace aurora
