// WKV-7 on a CPU: the recurrence itself, forward and backward.
//
// Shape letters: T packed positions, S sequences, H heads, K key width, V value width; P positions per chunk.
//
// Per head, with a state s [K][V]:
//     read = a_t s        s <- diag(exp w_t) s + b_t^T read + k_t^T v_t        y_t = r_t s
//
// The columns of a state have nothing to do with each other, so heads may be cut along the values.
// Forward, values lie across the lanes; one pass over the state makes y and what the next position reads.
// Backward, keys lie across the lanes; `read` is known from the forward pass, so that states are recomputed in tiles.
// What goes back through `read` needs all keys of a column before any of them can go on: it is summed over the lanes for
// all columns of a block at once, along with the gradient of v.

#include "common.h"

using namespace aurora;

namespace {

constexpr int64_t P = 16;
constexpr int64_t INTERVAL = 128;  // positions between two states that the forward pass keeps for the backward pass

INLINE void decay_row(float* decay, const float* w, int64_t n, float* padded) {
    std::memcpy(padded, w, n * sizeof(float));
    for (int64_t i = 0; i < n; i += W) store(decay + i, aurora::exp(load(padded + i)));
}

// Where `kept` has the state of a piece after `done` positions.
INLINE int64_t slot(const Piece& piece, int64_t done) {
    return piece.start / INTERVAL + piece.sequence + done / INTERVAL;
}

template <class E>
struct Inputs {
    const E *r, *k, *v, *a, *b;
    const float *w, *state;
};

// ---------------------------------------------------------------- forward

struct Forward {
    const float* r;  // [P][K]
    const float* k;
    const float* a;  // [P + 1][K]; what the last row holds does not matter
    const float* b;
    const float* decay;
    const float* v;  // [P][V]
    float* y;
    float* read;
    float* state;  // [K][V]
    int64_t K, V;  // padded
};

template <int C>
INLINE void forward_columns(const Forward& c, int64_t j0, int64_t n, Ahead& ahead) {
    vec read[C]{};
    for (int64_t i = 0; i < c.K; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) read[j] += c.a[i] * load(c.state + i * c.V + j0 + j * W);
    for (int64_t t = 0; t < n; ++t) {
        const float *r = c.r + t * c.K, *k = c.k + t * c.K, *b = c.b + t * c.K, *decay = c.decay + t * c.K;
        const float* next_a = c.a + (t + 1) * c.K;
        vec v[C], y[C]{}, next[C]{};
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
            v[j] = load(c.v + t * c.V + j0 + j * W);
            store(c.read + t * c.V + j0 + j * W, read[j]);
        }
        for (int64_t i = 0; i < c.K; ++i) {
            if (i % 2) ahead.fetch();
#pragma GCC unroll 4
            for (int j = 0; j < C; ++j) {
                float* at = c.state + i * c.V + j0 + j * W;
                const vec s = decay[i] * load(at) + (b[i] * read[j] + k[i] * v[j]);
                store(at, s);
                y[j] += r[i] * s;
                next[j] += next_a[i] * s;
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
            store(c.y + t * c.V + j0 + j * W, y[j]);
            read[j] = next[j];
        }
    }
}

template <class E>
void forward_piece(const Row& row, const Piece& piece, const Inputs<E>& in, E* y, float* after, float* kept,
                   float* reads) {
    const int64_t K = row.K, V = row.V, H = row.heads, first = piece.first, columns = piece.end - first;
    const int64_t Kp = round_up(K, W), Vp = round_up(columns, W), area = Kp * Vp, size = row.positions() * H * K;
    Scratch scratch(P * (4 * Kp + 3 * Vp) + (P + 2) * Kp + piece.heads * area);
    float *r = scratch.take(P * Kp), *k = scratch.take(P * Kp), *b = scratch.take(P * Kp), *decay = scratch.take(P * Kp);
    float *a = scratch.take((P + 1) * Kp), *padded = scratch.take(Kp), *states = scratch.take(piece.heads * area);
    float *v = scratch.take(P * Vp), *out = scratch.take(P * Vp), *read = scratch.take(P * Vp);
    const int64_t base = piece.sequence * H + piece.head;
    if (in.state)
        for (int64_t h = 0; h < piece.heads; ++h)
            for (int64_t i = 0; i < K; ++i)
                read_row(states + h * area + i * Vp, in.state + ((base + h) * K + i) * V + first, columns);
    Ahead ahead;
    for (int64_t t0 = piece.start; t0 < piece.stop; t0 += P) {
        const int64_t n = std::min(P, piece.stop - t0), done = t0 - piece.start;
        for (int64_t h = 0; h < piece.heads; ++h) {
            const int64_t head = piece.head + h;
            float* state = states + h * area;
            if (kept && done && done % INTERVAL == 0) {
                float* to = kept + (slot(piece, done) * H + head) * K * V + first;
                for (int64_t i = 0; i < K; ++i) write_large(to + i * V, state + i * Vp, columns, size);
            }
            for (int64_t t = 0; t < n; ++t) {
                const int64_t key = ((t0 + t) * H + head) * K, value = ((t0 + t) * H + head) * V + first;
                read_row(r + t * Kp, in.r + key, K);
                read_row(k + t * Kp, in.k + key, K);
                read_row(a + t * Kp, in.a + key, K);
                read_row(b + t * Kp, in.b + key, K);
                read_row(v + t * Vp, in.v + value, columns);
                decay_row(decay + t * Kp, in.w + key, K, padded);
            }
            const int64_t next = h + 1 < piece.heads ? head + 1 : piece.head;
            const int64_t from = h + 1 < piece.heads ? t0 : t0 + P;
            ahead.clear();
            for (int64_t t = from; t < std::min(piece.stop, from + P); ++t) {
                const int64_t key = (t * H + next) * K;
                for (const E* x : {in.r, in.k, in.a, in.b}) ahead.add(x + key, K);
                ahead.add(in.w + key, K);
                ahead.add(in.v + (t * H + next) * V + first, columns);
            }
            const Forward chunk{r, k, a, b, decay, v, out, read, state, Kp, Vp};
            int64_t j0 = 0;
            for (; j0 + 4 * W <= Vp; j0 += 4 * W) forward_columns<4>(chunk, j0, n, ahead);
            for (; j0 < Vp; j0 += W) forward_columns<1>(chunk, j0, n, ahead);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t value = ((t0 + t) * H + head) * V + first;
                write_large(y + value, out + t * Vp, columns, size);
                if (reads) write_large(reads + value, read + t * Vp, columns, size);
            }
        }
    }
    for (int64_t h = 0; h < piece.heads; ++h)
        for (int64_t i = 0; i < K; ++i)
            write_row(after + ((base + h) * K + i) * V + first, states + h * area + i * Vp, columns);
}

// ---------------------------------------------------------------- backward

constexpr int BLOCK = 8;  // columns that go back together

struct Backward {
    const float* r;  // [P][K]
    const float* k;
    const float* a;
    const float* b;
    const float* decay;
    const float* v;  // [P][V]
    const float* read;
    const float* grad_y;
    float* grad_r;  // [P][K], added to
    float* grad_k;
    float* grad_a;
    float* grad_b;
    float* grad_decay;
    float* grad_v;        // [P][V], written
    const float* before;  // [V][K]: the state before the chunk
    float* grad_state;    // [V][K]: gradient of the state after the chunk, made that of the state before it
    float* history;       // [P][BLOCK][K]: the states of a block before each position
    int64_t K, V;         // padded
};

// The state after n positions goes to `after`; or its history is kept and the gradient of r taken.
template <bool RECORD, int C>
INLINE void advance_tile(const Backward& c, float* after, int64_t i0, int64_t j0, int64_t n) {
    Tile<C> s;
    load_tile<C>(s, c.before + j0 * c.K + i0, c.K);
    for (int64_t t = 0; t < n; ++t) {
        vec k[C], b[C], decay[C], grad_r[C];
        load_keys(k, c.k + t * c.K + i0);
        load_keys(b, c.b + t * c.K + i0);
        load_keys(decay, c.decay + t * c.K + i0);
        if constexpr (RECORD) {
            load_keys(grad_r, c.grad_r + t * c.K + i0);
            store_tile<C>(c.history + (t * BLOCK + j0 % BLOCK) * c.K + i0, s, c.K);
        }
        const float *v = c.v + t * c.V + j0, *read = c.read + t * c.V + j0, *grad_y = c.grad_y + t * c.V + j0;
#pragma GCC unroll 4
        for (int j = 0; j < VR; ++j)
#pragma GCC unroll 4
            for (int q = 0; q < C; ++q) {
                s[j][q] = decay[q] * s[j][q] + (b[q] * read[j] + k[q] * v[j]);
                if constexpr (RECORD) grad_r[q] += s[j][q] * grad_y[j];
            }
        if constexpr (RECORD) store_keys(c.grad_r + t * c.K + i0, grad_r);
    }
    if constexpr (!RECORD) store_tile<C>(after + j0 * c.K + i0, s, c.K);
}

template <bool RECORD>
INLINE void advance_block(const Backward& c, float* after, int64_t block, int64_t n) {
    for (int64_t j0 = block; j0 < block + BLOCK; j0 += VR) {
        int64_t i0 = 0;
        for (; i0 + KC * W <= c.K; i0 += KC * W) advance_tile<RECORD, KC>(c, after, i0, j0, n);
        for (; i0 < c.K; i0 += W) advance_tile<RECORD, 1>(c, after, i0, j0, n);
    }
}

// The gradient of the state takes in that of y; what it hands to `read` and to v, for each column of the block.
INLINE void gather(const Backward& c, int64_t t, int64_t j0, float* grad_read) {
    const float *r = c.r + t * c.K, *k = c.k + t * c.K, *b = c.b + t * c.K, *grad_y = c.grad_y + t * c.V + j0;
    vec shares[2 * BLOCK];
#pragma GCC unroll 8
    for (int j = 0; j < BLOCK; ++j) {
        vec to_read{}, to_v{};
        for (int64_t i = 0; i < c.K; i += W) {
            float* at = c.grad_state + (j0 + j) * c.K + i;
            const vec g = load(at) + load(r + i) * grad_y[j];
            store(at, g);
            to_read += g * load(b + i);
            to_v += g * load(k + i);
        }
        shares[j] = to_read;
        shares[BLOCK + j] = to_v;
    }
    float sums[2 * BLOCK];
#pragma GCC unroll 4
    for (int q = 0; q < 2 * BLOCK; q += W) store(sums + q, sum_lanes(shares + q));
    std::memcpy(grad_read, sums, BLOCK * sizeof(float));
    std::memcpy(c.grad_v + t * c.V + j0, sums + BLOCK, BLOCK * sizeof(float));
}

template <int C>
INLINE void spread(const Backward& c, int64_t t, int64_t i0, int64_t j0, const float* grad_read) {
    const float *v = c.v + t * c.V + j0, *read = c.read + t * c.V + j0;
    vec a[C], decay[C], grad_k[C], grad_a[C], grad_b[C], grad_decay[C];
    load_keys(a, c.a + t * c.K + i0);
    load_keys(decay, c.decay + t * c.K + i0);
    load_keys(grad_k, c.grad_k + t * c.K + i0);
    load_keys(grad_a, c.grad_a + t * c.K + i0);
    load_keys(grad_b, c.grad_b + t * c.K + i0);
    load_keys(grad_decay, c.grad_decay + t * c.K + i0);
#pragma GCC unroll 8
    for (int j = 0; j < BLOCK; ++j)
#pragma GCC unroll 4
        for (int q = 0; q < C; ++q) {
            float* at = c.grad_state + (j0 + j) * c.K + i0 + q * W;
            const vec g = load(at), s = load(c.history + (t * BLOCK + j) * c.K + i0 + q * W);
            grad_k[q] += g * v[j];
            grad_b[q] += g * read[j];
            grad_decay[q] += g * s;
            grad_a[q] += s * grad_read[j];
            store(at, decay[q] * g + a[q] * grad_read[j]);
        }
    store_keys(c.grad_k + t * c.K + i0, grad_k);
    store_keys(c.grad_a + t * c.K + i0, grad_a);
    store_keys(c.grad_b + t * c.K + i0, grad_b);
    store_keys(c.grad_decay + t * c.K + i0, grad_decay);
}

void backward_chunk(const Backward& c, int64_t n, Ahead& ahead) {
    for (int64_t j0 = 0; j0 < c.V; j0 += BLOCK) {
        advance_block<true>(c, nullptr, j0, n);
        for (int64_t t = n - 1; t >= 0; --t) {
            for (int line = 0; line < 4; ++line) ahead.fetch();
            float grad_read[BLOCK];
            gather(c, t, j0, grad_read);
            int64_t i0 = 0;
            for (; i0 + KC * W <= c.K; i0 += KC * W) spread<KC>(c, t, i0, j0, grad_read);
            for (; i0 < c.K; i0 += W) spread<1>(c, t, i0, j0, grad_read);
        }
    }
}

// r, w, k, a, b [parts][T][H][K]: shares, to be summed; v [T][H][V], state [S][H][K][V].
template <class E>
struct Gradients {
    E *r, *k, *v, *a, *b;
    float *w, *state;
};

template <class E>
void backward_piece(const Row& row, const Piece& piece, const Inputs<E>& in, const float* kept, const float* reads,
                    const E* grad_y, const float* grad_after, const Gradients<E>& grad) {
    const int64_t K = row.K, V = row.V, H = row.heads, first = piece.first, columns = piece.end - first;
    const int64_t Kp = round_up(K, W), Vp = round_up(columns, std::max(W, BLOCK)), area = Vp * Kp;
    const int64_t chunks = INTERVAL / P, size = row.positions() * H * K;
    Scratch scratch(INTERVAL * (5 * Kp + 3 * Vp) + P * (5 * Kp + Vp) + (chunks + piece.heads) * area +
                    (P * BLOCK + 1) * Kp);
    float *r = scratch.take(INTERVAL * Kp), *k = scratch.take(INTERVAL * Kp), *a = scratch.take(INTERVAL * Kp);
    float *b = scratch.take(INTERVAL * Kp), *decay = scratch.take(INTERVAL * Kp), *v = scratch.take(INTERVAL * Vp);
    float *read = scratch.take(INTERVAL * Vp), *gy = scratch.take(INTERVAL * Vp);
    float *grad_r = scratch.take(P * Kp), *grad_k = scratch.take(P * Kp), *grad_a = scratch.take(P * Kp);
    float *grad_b = scratch.take(P * Kp), *grad_decay = scratch.take(P * Kp), *grad_v = scratch.take(P * Vp);
    float *states = scratch.take(chunks * area), *grad_states = scratch.take(piece.heads * area);
    float *history = scratch.take(P * BLOCK * Kp), *padded = scratch.take(Kp);
    const int64_t base = piece.sequence * H + piece.head, share = piece.part * size;
    if (grad_after)
        for (int64_t h = 0; h < piece.heads; ++h)
            transpose(grad_after + (base + h) * K * V + first, V, grad_states + h * area, Kp, K, columns);
    Ahead ahead;
    const int64_t length = piece.stop - piece.start;
    for (int64_t done = (length - 1) / INTERVAL * INTERVAL; done >= 0; done -= INTERVAL) {
        const int64_t t0 = piece.start + done, n = std::min(INTERVAL, piece.stop - t0);
        for (int64_t h = 0; h < piece.heads; ++h) {
            const int64_t head = piece.head + h;
            for (int64_t t = 0; t < n; ++t) {
                const int64_t key = ((t0 + t) * H + head) * K, value = ((t0 + t) * H + head) * V + first;
                read_row(r + t * Kp, in.r + key, K);
                read_row(k + t * Kp, in.k + key, K);
                read_row(a + t * Kp, in.a + key, K);
                read_row(b + t * Kp, in.b + key, K);
                read_row(v + t * Vp, in.v + value, columns);
                read_row(read + t * Vp, reads + value, columns);
                read_row(gy + t * Vp, grad_y + value, columns);
                decay_row(decay + t * Kp, in.w + key, K, padded);
            }
            if (done)
                transpose(kept + (slot(piece, done) * H + head) * K * V + first, V, states, Kp, K, columns);
            else if (in.state)
                transpose(in.state + (base + h) * K * V + first, V, states, Kp, K, columns);
            else
                std::memset(states, 0, area * sizeof(float));
            const auto chunk = [&](int64_t c) {
                const int64_t key = c * P * Kp, value = c * P * Vp;
                return Backward{r + key,    k + key,     a + key,    b + key, decay + key, v + value, read + value,
                                gy + value, grad_r,      grad_k,     grad_a,  grad_b,      grad_decay, grad_v,
                                states + c * area, grad_states + h * area, history, Kp, Vp};
            };
            const int64_t last = (n - 1) / P;
            for (int64_t c = 0; c < last; ++c)
                for (int64_t j0 = 0; j0 < Vp; j0 += BLOCK)
                    advance_block<false>(chunk(c), states + (c + 1) * area, j0, P);
            for (int64_t c = last; c >= 0; --c) {
                const int64_t m = std::min(P, n - c * P);
                for (float* zeroed : {grad_r, grad_k, grad_a, grad_b, grad_decay})
                    std::memset(zeroed, 0, m * Kp * sizeof(float));
                const int64_t next = h + 1 < piece.heads ? head + 1 : piece.head;
                const int64_t from = (h + 1 < piece.heads ? t0 : t0 - INTERVAL) + c * P;
                ahead.clear();
                for (int64_t t = from; t >= piece.start && t < std::min(piece.stop, from + P); ++t) {
                    const int64_t key = (t * H + next) * K, value = (t * H + next) * V + first;
                    for (const E* x : {in.r, in.k, in.a, in.b}) ahead.add(x + key, K);
                    ahead.add(in.w + key, K);
                    ahead.add(reads + value, columns);
                    for (const E* x : {in.v, grad_y}) ahead.add(x + value, columns);
                }
                backward_chunk(chunk(c), m, ahead);
                for (int64_t t = 0; t < m; ++t) {
                    const int64_t at = (t0 + c * P + t) * H + head, key = at * K, from = t * Kp;
                    for (int64_t i = 0; i < Kp; i += W)
                        store(grad_decay + from + i, load(grad_decay + from + i) * load(decay + c * P * Kp + from + i));
                    write_large(grad.r + share + key, grad_r + from, K, size);
                    write_large(grad.w + share + key, grad_decay + from, K, size);
                    write_large(grad.k + share + key, grad_k + from, K, size);
                    write_large(grad.a + share + key, grad_a + from, K, size);
                    write_large(grad.b + share + key, grad_b + from, K, size);
                    write_large(grad.v + at * V + first, grad_v + t * Vp, columns, size);
                }
            }
        }
    }
    for (int64_t h = 0; h < piece.heads; ++h)
        transpose(grad_states + h * area, Kp, grad.state + (base + h) * K * V + first, V, columns, K);
}

}  // namespace

extern "C" {

// Positions between two states of `kept`, which holds [T / interval + S][H][K][V] of them.
int64_t wkv7_interval() { return INTERVAL; }

// How many shares of the gradients of r, w, k, a and b there will be.
int64_t wkv7_shares(const int64_t* bounds, int64_t S, int64_t H, int64_t K, int64_t V, int threads) {
    return Row{bounds, S, H, K, V, threads}.cuts(V, W).count;
}

// r, k, v, a, b and y are float32, or all bfloat16 where `half`; state, kept and reads may be null.
void wkv7_forward(int half, const void* r, const float* w, const void* k, const void* v, const void* a, const void* b,
                  const float* state, const int64_t* bounds, int64_t S, int64_t H, int64_t K, int64_t V, int threads,
                  void* y, float* after, float* kept, float* reads) {
    const Row row{bounds, S, H, K, V, threads};
    const auto run = [&](auto element) {
        using E = decltype(element);
        const Inputs<E> in{(const E*)r, (const E*)k, (const E*)v, (const E*)a, (const E*)b, w, state};
        prepare((E*)y, row.positions() * H * V);
        prepare(reads, row.positions() * H * V);
        prepare(kept, (row.positions() / INTERVAL + S) * H * K * V);
        row.share(V, W, [&](const Piece& piece) { forward_piece<E>(row, piece, in, (E*)y, after, kept, reads); });
    };
    half ? run(bf16{}) : run(float{});
}

// Gradients in the dtypes of their inputs, those of r, w, k, a, b [shares][T][H][K]; grad_after may be null.
void wkv7_backward(int half, const void* r, const float* w, const void* k, const void* v, const void* a, const void* b,
                   const float* state, const int64_t* bounds, int64_t S, int64_t H, int64_t K, int64_t V, int threads,
                   const float* kept, const float* reads, const void* grad_y, const float* grad_after, void* grad_r,
                   float* grad_w, void* grad_k, void* grad_v, void* grad_a, void* grad_b, float* grad_state) {
    const Row row{bounds, S, H, K, V, threads};
    const auto run = [&](auto element) {
        using E = decltype(element);
        const Inputs<E> in{(const E*)r, (const E*)k, (const E*)v, (const E*)a, (const E*)b, w, state};
        const Gradients<E> grad{(E*)grad_r, (E*)grad_k, (E*)grad_v, (E*)grad_a, (E*)grad_b, grad_w, grad_state};
        const int64_t keys = row.positions() * H * K * row.cuts(V, W).count;
        for (E* x : {grad.r, grad.k, grad.a, grad.b}) prepare(x, keys);
        prepare(grad.w, keys);
        prepare(grad.v, row.positions() * H * V);
        row.share(V, W, [&](const Piece& piece) {
            backward_piece<E>(row, piece, in, kept, reads, (const E*)grad_y, grad_after, grad);
        });
    };
    half ? run(bf16{}) : run(float{});
}
}
