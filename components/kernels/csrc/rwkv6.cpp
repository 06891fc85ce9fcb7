// RWKV-6 on a CPU: some positions of some sequences through all layers in one call.
//
// Weights are read once per block of rows (those of a narrow model, which lie in the caches, once per few rows), by
// threads that meet several times per layer; everything between the weights is float32. What comes out at a position does
// not depend on what other sequences read, nor on where a sequence is cut into calls: every sum is taken in the same order.
// Shape letters: S sequences, T positions of all of them, B rows of a block, L layers, C width, H heads, N head width,
// F width of the channel mix.

#include <omp.h>

#include "gemv.h"

namespace {

using namespace aurora;

constexpr float LAYER_NORM_EPS = 1e-5f, LARGEST_W = 10.0f;
constexpr int PARTS = 32;  // of the hidden units of a channel mix
constexpr int64_t BLOCK = 64;  // rows that go through all layers together

// What a layer points to, in the order in which its pointers are given; matrices may be int8, the rest is of type E.
enum Field {
    LN1_WEIGHT, LN1_BIAS, LN2_WEIGHT, LN2_BIAS,                                           // [C]
    MAA_X, MAA_W, MAA_K, MAA_V, MAA_R, MAA_G,                                             // [C]
    MAA_W1, MAA_W2,                                                                       // [C, 5 rank], [5, rank, C]
    DECAY, DECAY_W1, DECAY_W2, BONUS,                                                     // [C], [C, rank], [rank, C], [H, N]
    LN_X_WEIGHT, LN_X_BIAS, FFN_MAA_K, FFN_MAA_R,                                         // [C]
    RECEPTANCE, KEY, VALUE, GATE, OUTPUT, FFN_KEY, FFN_RECEPTANCE, FFN_VALUE, MATRICES_END,  // [outputs, inputs]
    FIELDS = MATRICES_END + MATRICES_END - RECEPTANCE,                                    // then the matrices' scales
};

struct Sizes {
    int64_t layers, width, heads, ffn, mix_rank, decay_rank;
    int64_t is_narrow;  // all matrices lie in the caches, and in memory as [inputs, outputs]; else only FFN_VALUE does
    float group_norm_eps;
};

struct Call {
    const void* const* pointers;  // [L][FIELDS]
    const void* const* ends;      // weight and bias [C] of the norms that enter and leave the model
    const void *x;                                                 // [T, C]
    const int64_t* bounds;                                         // [S + 1]: where in x each sequence starts
    const void *att_shift, *ffn_shift;                             // [L, S, C]
    const float* wkv;                                              // [L, S, H, N, N]: key, value
    void *hidden, *att_shift_after, *ffn_shift_after;              // hidden [T, C]
    float* wkv_after;
    int64_t S;
    int threads;

    int64_t T() const { return bounds[S]; }
};

INLINE vec sigmoid(vec x) {
    const vec most = splat(88.0f), minus = -x;
    return 1.0f / (1.0f + exp(minus > most ? most : minus));
}

// To two units in the last place; near 0 by the beginning of the series, where the other form loses its digits.
INLINE vec tanh(vec x) {
    const vec bound = splat(44.0f), two = x + x, square = x * x;
    const vec large = 1.0f - 2.0f / (1.0f + exp(two > 2 * bound ? 2 * bound : two));
    vec p = splat(-17.0f / 315);
    p = p * square + 2.0f / 15;
    p = p * square - 1.0f / 3;
    return square < splat(0.04f) ? x + x * square * p : large;
}

// x [n] = f of it, W at a time: the library's functions take them one by one.
template <class Function>
INLINE void map(float* x, int64_t n, Function f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(x + i, f(load(x + i)));
    if (i == n) return;
    float rest[W] = {};
    std::copy(x + i, x + n, rest);
    store(rest, f(load(rest)));
    std::copy(rest, rest + n - i, x + i);
}

struct Span {
    int64_t first, end;
};

// The share of a thread in n things, in whole units.
INLINE Span share(int64_t n, int64_t unit, int thread, int threads) {
    const int64_t units = (n + unit - 1) / unit;
    return {std::min(n, units * thread / threads * unit), std::min(n, units * (thread + 1) / threads * unit)};
}

// Floats of all threads and of each thread: rows of vectors. What is in those behind the last one matters to no other.
class Floats {
  public:
    float* rows(int64_t count, int64_t width) {
        return room(pieces_[used_++], count * width);
    }
    void reset() { used_ = 0; }

  private:
    std::vector<float> pieces_[16];
    int used_ = 0;
};

// Where a row of x stands.
struct Place {
    int64_t sequence;
    bool first, last;  // of its sequence
};

template <class E, class M>
struct Reading {
    const Sizes& size;
    const Call& call;
    const int64_t C = size.width, F = size.ffn, H = size.heads, N = C / H, hidden = 5 * size.mix_rank;
    // the rows of this block, in number and padded, and how many blocks there were before
    int64_t B = 0, S = 0, block = 0;
    std::vector<Place> places;
    // of all threads, [B][...]
    float *x, *mix_hidden, *mixed, *decay_hidden, *projected, *read, *inner, *gate, *partial;
    // [2][L][2][C]: what the two shifts of a layer remember of a sequence that goes on in the next block
    float* carried;

    const E* small(int64_t layer, int field) const { return (const E*)call.pointers[layer * FIELDS + field]; }
    Matrix<M> matrix(int64_t layer, int field) const {
        const int64_t outputs = field == FFN_KEY ? F : C, inputs = field == FFN_VALUE ? F : C;
        const bool transposed = size.is_narrow || field == FFN_VALUE;
        return {(const M*)call.pointers[layer * FIELDS + field],
                (const float*)call.pointers[layer * FIELDS + field + MATRICES_END - RECEPTANCE], outputs, inputs,
                transposed ? outputs : inputs, transposed, bool(size.is_narrow)};
    }

    // What one thread keeps for itself.
    struct Own {
        float *normal, *before, *first, *second, *out;  // [S][...]
        std::vector<int32_t> used;
    };

    // normal = layer norm of x, before = that of the position before, rounded as the state keeps it, which remembers
    // the last one from now on; `which` of the two shifts it is
    void look_back(int64_t layer, int which, const E* weight, const E* bias, const void* shift, void* after, Own& own,
                   Span columns) const {
        for (int64_t i = 0; i < B; ++i) layer_norm(x + i * C, weight, bias, LAYER_NORM_EPS, own.normal + i * C, C);
        const int64_t at = layer * call.S, to = columns.end - columns.first;
        const auto carry = [&](int64_t turn) { return carried + ((turn % 2 * size.layers + layer) * 2 + which) * C; };
        for (int64_t i = 0; i < B; ++i) {
            const Place& place = places[i];
            float *normal = own.normal + i * C, *before = own.before + i * C;
            if (place.first)
                read_row(before, (const E*)shift + (at + place.sequence) * C, C);
            else if (i == 0)
                std::copy(carry(block + 1), carry(block + 1) + C, before);
            else
                for (int64_t c = 0; c < C; ++c) before[c] = rounded(own.normal[(i - 1) * C + c]);
            if (place.last)
                write_row((E*)after + (at + place.sequence) * C + columns.first, normal + columns.first, to);
            else if (i == B - 1)
                for (int64_t c = columns.first; c < columns.end; ++c) carry(block)[c] = rounded(normal[c]);
        }
    }

    static INLINE float rounded(float value) {
        if constexpr (std::is_same<E, float>::value) return value;
        E narrow;
        write_row(&narrow, &value, 1);
        return widen(narrow);
    }

    void interpolate(const Own& own, const E* ratio, float* to) const {
        for (int64_t s = 0; s < B; ++s) {
            const float *a = own.normal + s * C, *b = own.before + s * C;
            float* out = to + s * C;
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) out[c] = a[c] + (b[c] - a[c]) * widen(ratio[c]);
        }
    }

    // Outputs of all rows of the block.
    template <class Any>
    void multiply(const Matrix<Any>& w, const float* from, int64_t stride, Span outputs, float* to) const {
        times(w, from, stride, B, outputs.first, outputs.end, to, w.N);
    }

    Matrix<E> columns_of(const E* w, int64_t K, int64_t outputs) const {
        return {w, nullptr, outputs, K, outputs, true, bool(size.is_narrow)};
    }

    void mix_ratios(int64_t layer, Own& own, Span columns) const {
        multiply(columns_of(small(layer, MAA_W1), C, hidden), own.first, C, columns, mix_hidden);
        for (int64_t s = 0; s < B; ++s)
            map(mix_hidden + s * hidden + columns.first, columns.end - columns.first, [](vec x) { return tanh(x); });
    }

    void mix_five(int64_t layer, Own& own, Span columns) const {
        for (int i = 0; i < 5; ++i) {
            const E *w = small(layer, MAA_W2) + i * size.mix_rank * C, *constant = small(layer, MAA_W + i);
            multiply(columns_of(w, size.mix_rank, C), mix_hidden + i * size.mix_rank, hidden, columns, own.out);
            for (int64_t s = 0; s < B; ++s) {
                const float *a = own.normal + s * C, *b = own.before + s * C, *ratio = own.out + s * C;
                float* to = mixed + (i * S + s) * C;
#pragma omp simd
                for (int64_t c = columns.first; c < columns.end; ++c)
                    to[c] = a[c] + (b[c] - a[c]) * (widen(constant[c]) + ratio[c]);
            }
        }
    }

    void project(int64_t layer, Own& own, Span rows, Span decay_columns) const {
        constexpr struct { int field, input; } ORDER[4] = {{RECEPTANCE, 3}, {KEY, 1}, {VALUE, 2}, {GATE, 4}};
        for (int i = 0; i < 4; ++i) {
            multiply(matrix(layer, ORDER[i].field), mixed + ORDER[i].input * S * C, C, rows, projected + i * S * C);
        }
        multiply(columns_of(small(layer, DECAY_W1), C, size.decay_rank), mixed, C, decay_columns, decay_hidden);
        for (int64_t s = 0; s < B; ++s)
            map(decay_hidden + s * size.decay_rank + decay_columns.first, decay_columns.end - decay_columns.first,
                [](vec x) { return tanh(x); });
    }

    struct Head {
        const float *r, *k, *v;
        const E* bonus;
        const float *decay, *state;
        float *after, *y;
        int64_t N;
    };

    // V vectors of values from `first` on.
    template <int V>
    static INLINE void recur_block(const Head& h, int64_t first) {
        vec total[V] = {}, value[V];
#pragma GCC unroll 4
        for (int b = 0; b < V; ++b) value[b] = load(h.v + first + b * W);
        for (int64_t i = 0; i < h.N; ++i) {
            const float own = h.r[i] * widen(h.bonus[i]) * h.k[i];
#pragma GCC unroll 4
            for (int b = 0; b < V; ++b) {
                const vec before = load(h.state + i * h.N + first + b * W);
                total[b] += h.r[i] * before + own * value[b];
                store(h.after + i * h.N + first + b * W, h.decay[i] * before + h.k[i] * value[b]);
            }
        }
#pragma GCC unroll 4
        for (int b = 0; b < V; ++b) store(h.y + first + b * W, total[b]);
    }

    // One head at one row: the decay, of which `decay` [N] holds what depends on the input, the WKV operator, the
    // norm and the gate.
    void recur(int64_t layer, int64_t s, int64_t head, float* decay) const {
        const int64_t at = head * N;
        const E* constant = small(layer, DECAY) + at;
        for (int64_t n = 0; n < N; ++n) decay[n] += widen(constant[n]);
        map(decay, N, [](vec x) { return exp(-exp(x > splat(LARGEST_W) ? splat(LARGEST_W) : x)); });

        const E* bonus = small(layer, BONUS) + at;
        const float *r = projected + s * C + at, *k = r + S * C, *v = k + S * C, *g = v + S * C;
        const int64_t place = ((layer * call.S + places[s].sequence) * H + head) * N * N;
        float *after = call.wkv_after + place, *y = read + s * C + at;
        const float* state = places[s].first ? call.wkv + place : after;
        const Head head_of{r, k, v, bonus, decay, state, after, y, N};
        int64_t first = 0;
        for (; first + 4 * W <= N; first += 4 * W) recur_block<4>(head_of, first);
        for (; first + 2 * W <= N; first += 2 * W) recur_block<2>(head_of, first);
        std::fill(y + first, y + N, 0.0f);
        for (int64_t i = 0; i < N; ++i)
            for (int64_t n = first; n < N; ++n) {
                const float before = state[i * N + n];
                y[n] += r[i] * before + r[i] * widen(bonus[i]) * k[i] * v[n];
                after[i * N + n] = decay[i] * before + k[i] * v[n];
            }
        normalise(y, y, N, size.group_norm_eps);
        const E *weight = small(layer, LN_X_WEIGHT) + at, *bias = small(layer, LN_X_BIAS) + at;
        float* swish = decay;  // which has been used
        std::copy(g, g + N, swish);
        map(swish, N, [](vec x) { return x * sigmoid(x); });
#pragma omp simd
        for (int64_t n = 0; n < N; ++n) y[n] = (y[n] * widen(weight[n]) + widen(bias[n])) * swish[n];
    }

    void channel_inner(int64_t layer, const Own& own, Span inner_rows, Span rows) const {
        multiply(matrix(layer, FFN_KEY), own.first, C, inner_rows, inner);
        multiply(matrix(layer, FFN_RECEPTANCE), own.second, C, rows, gate);
        for (int64_t s = 0; s < B; ++s) {
            for (int64_t i = s * F + inner_rows.first; i < s * F + inner_rows.end; ++i)
                inner[i] = inner[i] < 0 ? 0 : inner[i] * inner[i];
            map(gate + s * C + rows.first, rows.end - rows.first, [](vec x) { return sigmoid(x); });
        }
    }

    // Hidden units that are zero in every sequence have weights that need not be read. Sums are taken over parts of the
    // units and then over the parts, so that they depend neither on the number of threads nor on what other sequences
    // use. Weights in the caches are read faster than it is found out which are needed.
    void channel_value(int64_t layer, Own& own, Span columns, int thread, int threads) const {
        const Matrix<M> w = matrix(layer, FFN_VALUE);
        if (size.is_narrow) {
            multiply(w, inner, F, columns, own.out);
        } else {
            const Span parts = share(PARTS, 1, thread, threads);
            for (int64_t part = parts.first; part < parts.end; ++part) {
                const Span units = share(F, 1, int(part), PARTS);
                own.used.resize(F);
                int64_t count = 0;
                for (int64_t i = units.first; i < units.end; ++i) {
                    own.used[count] = int32_t(i);
                    count += any_used(i);
                }
                times_columns(w, inner, F, B, own.used.data(), count, 0, C, partial + part * S * C, C);
            }
#pragma omp barrier
            for (int64_t s = 0; s < B; ++s)
                for (int64_t i = s * C + columns.first; i < s * C + columns.end; ++i) own.out[i] = 0;
            for (int part = 0; part < PARTS; ++part)
                for (int64_t s = 0; s < B; ++s)
                    for (int64_t i = s * C + columns.first; i < s * C + columns.end; ++i)
                        own.out[i] += partial[part * S * C + i];
        }
        for (int64_t s = 0; s < B; ++s)
            for (int64_t i = s * C + columns.first; i < s * C + columns.end; ++i) x[i] += gate[i] * own.out[i];
    }

    bool any_used(int64_t i) const {
        for (int64_t s = 0; s < B; ++s)
            if (!(inner[s * F + i] == 0)) return true;  // a NaN is none
        return false;
    }

    void layer(int64_t l, Own& own, int thread, int threads) const {
        const Span columns = share(C, 32, thread, threads);
        look_back(l, 0, small(l, LN1_WEIGHT), small(l, LN1_BIAS), call.att_shift, call.att_shift_after, own, columns);
        interpolate(own, small(l, MAA_X), own.first);
        mix_ratios(l, own, share(hidden, W, thread, threads));
#pragma omp barrier
        mix_five(l, own, columns);
#pragma omp barrier
        project(l, own, columns, share(size.decay_rank, W, thread, threads));
#pragma omp barrier
        const Span heads = share(H, 1, thread, threads);
        multiply(columns_of(small(l, DECAY_W2), size.decay_rank, C), decay_hidden, size.decay_rank,
                 {heads.first * N, heads.end * N}, own.out);
        for (int64_t head = heads.first; head < heads.end; ++head)
            for (int64_t s = 0; s < B; ++s) recur(l, s, head, own.out + s * C + head * N);
#pragma omp barrier
        multiply(matrix(l, OUTPUT), read, C, columns, own.out);
        for (int64_t s = 0; s < B; ++s)
            for (int64_t i = s * C + columns.first; i < s * C + columns.end; ++i) x[i] += own.out[i];
#pragma omp barrier
        look_back(l, 1, small(l, LN2_WEIGHT), small(l, LN2_BIAS), call.ffn_shift, call.ffn_shift_after, own, columns);
        interpolate(own, small(l, FFN_MAA_K), own.first);
        interpolate(own, small(l, FFN_MAA_R), own.second);
        channel_inner(l, own, share(F, 32, thread, threads), columns);
#pragma omp barrier
        channel_value(l, own, columns, thread, threads);
#pragma omp barrier
    }

    void run() {
        static thread_local Floats shared, private_floats;
        const int64_t most = padded_vectors(std::min(BLOCK, call.T()));
        shared.reset();
        x = shared.rows(most, C);
        mix_hidden = shared.rows(most, hidden);
        mixed = shared.rows(5 * most, C);
        decay_hidden = shared.rows(most, size.decay_rank);
        projected = shared.rows(4 * most, C);
        read = shared.rows(most, C);
        inner = shared.rows(most, F);
        gate = shared.rows(most, C);
        partial = shared.rows(PARTS * most, C);
        carried = shared.rows(4 * size.layers, C);
        const E* const* ends = (const E* const*)call.ends;
#pragma omp parallel num_threads(call.threads)
        {
            const FlushSubnormals flush;
            const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
            private_floats.reset();
            Own own{private_floats.rows(most, C), private_floats.rows(most, C), private_floats.rows(most, C),
                    private_floats.rows(most, C), private_floats.rows(most, C), {}};
            float* given = private_floats.rows(1, C);
            for (int64_t start = 0; start < call.T(); start += BLOCK) {
#pragma omp barrier
#pragma omp single
                enter(start);
                const Span own_rows = share(B, 1, thread, threads);
                for (int64_t i = own_rows.first; i < own_rows.end; ++i) {
                    read_row(given, (const E*)call.x + (start + i) * C, C);
                    layer_norm(given, ends[0], ends[1], LAYER_NORM_EPS, x + i * C, C);
                }
#pragma omp barrier
                for (int64_t l = 0; l < size.layers; ++l) layer(l, own, thread, threads);
                for (int64_t i = own_rows.first; i < own_rows.end; ++i) {
                    layer_norm(x + i * C, ends[2], ends[3], LAYER_NORM_EPS, given, C);
                    write_row((E*)call.hidden + (start + i) * C, given, C);
                }
            }
        }
    }

    // The rows from `start` on are the block now.
    void enter(int64_t start) {
        block = start / BLOCK;
        B = std::min(BLOCK, call.T() - start);
        S = padded_vectors(B);
        int64_t sequence = std::upper_bound(call.bounds, call.bounds + call.S + 1, start) - call.bounds - 1;
        places.clear();
        for (int64_t row = start; row < start + B; ++row) {
            while (row == call.bounds[sequence + 1]) ++sequence;
            places.push_back({sequence, row == call.bounds[sequence], row + 1 == call.bounds[sequence + 1]});
        }
    }
};

template <class E, class M>
void read(const Sizes& size, const Call& call) {
    Reading<E, M>{size, call}.run();
}

}  // namespace

extern "C" int rwkv6_fields() { return FIELDS; }

// The positions of any number of sequences, each of which has one or more. sizes: layers, width, heads, ffn, mix rank,
// decay rank, whether it is narrow.
extern "C" void rwkv6_read(const int64_t* sizes, float group_norm_eps, const void* const* pointers,
                           const void* const* ends, const void* x, const void* att_shift, const float* wkv,
                           const void* ffn_shift, void* hidden, void* att_shift_after, float* wkv_after,
                           void* ffn_shift_after, const int64_t* bounds, int64_t sequences, int is_bf16, int is_int8,
                           int threads) {
    const Sizes size{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], group_norm_eps};
    const Call call{pointers, ends, x, bounds, att_shift, ffn_shift, wkv, hidden, att_shift_after, ffn_shift_after,
                    wkv_after, sequences, threads};
    if (is_bf16)
        is_int8 ? read<bf16, int8_t>(size, call) : read<bf16, bf16>(size, call);
    else
        is_int8 ? read<float, int8_t>(size, call) : read<float, float>(size, call);
}
