// WKV-6 on a CPU: the recurrence itself, forward and backward.
//
// Shape letters: T packed positions, S sequences, H heads, K key width, V value width; P positions per chunk.
//
// Per head, with lw = -exp(min(w, 10)) and a state s [K][V]:
//     y_t = r_t (s + diag(bonus) k_t^T v_t)        s <- diag(exp lw_t) s + k_t^T v_t
//
// A head is worked on in chunks of P positions. A tile of the state that fits the registers is carried through a whole
// chunk before the next tile is taken up, so that the state is read and written once per chunk.
// Forward, values lie across the lanes, so that y is a sum over registers; heads may be cut along the values.
// Backward, keys lie across the lanes, so that the gradients of r, k and w are sums over registers; heads may be cut
// along the keys, and each cut gives a share of the gradient of v.

#include "common.h"

using namespace aurora;

namespace {

constexpr int64_t P = 16;
constexpr int64_t INTERVAL = 128;  // positions between two states that the forward pass keeps for the backward pass
constexpr float LARGEST_W = 10.0f;

// The decay exp(-exp w) of a row, and where `slope` is given its derivative by w.
INLINE void decay_row(float* decay, float* slope, const float* w, int64_t n, float* padded) {
    std::memcpy(padded, w, n * sizeof(float));
    for (int64_t i = 0; i < n; i += W) {
        vec x = load(padded + i), most = splat(LARGEST_W);
        vec log_decay = -aurora::exp(x > most ? most : x);
        vec d = aurora::exp(log_decay);
        store(decay + i, d);
        if (slope) store(slope + i, d * log_decay);
    }
}

// Where `kept` has the state of a piece after `done` positions.
INLINE int64_t slot(const Piece& piece, int64_t done) {
    return piece.start / INTERVAL + piece.sequence + done / INTERVAL;
}

// ---------------------------------------------------------------- forward

// Within a chunk the state may be carried without the decays before it. With D_t their product since the chunk began,
// s'_t = s_t / D_t:
//     y_t = (r_t D_t) s'_t        s'_t+1 = s'_t + (k_t / D_t+1)^T v_t
// which is two operations per element instead of three. Later products are made from earlier ones, so that quotients of
// them round as the recurrence does. Keys whose product becomes as small as LEAST go the way that is written down.
struct Forward {
    const float* r;  // [P][K]
    const float* k;
    const float* decay;
    const float* scaled_r;  // r_t D_t
    const float* scaled_k;  // k_t / D_t+1
    const float* product;   // [K]: of all decays of the chunk
    const float* v;         // [P][V]
    float* y;
    float* state;  // [K][V]
    int64_t K, V;  // padded
};

constexpr int KR = 4;                    // keys of a tile
constexpr float LEAST = 8.27180613e-25f;  // 2^-80

// Cache lines that will be wanted: neighbours, 1 << shift of them, of each of some positions `apart` bytes from each other.
// They are asked for in the order of their addresses, which lets the processor go on by itself.
struct Wanted {
    const char* first;
    int64_t apart;
    int shift;

    INLINE void ask(int64_t number) const {
        __builtin_prefetch(first + (number >> shift) * apart + (number & ((1 << shift) - 1)) * 64, 0, 2);
    }
};

template <bool SCALED, int VC>
INLINE void forward_tile(const Forward& c, int64_t i0, int64_t j0, int64_t n, Wanted wanted) {
    const float *rs = SCALED ? c.scaled_r : c.r, *ks = SCALED ? c.scaled_k : c.k;
    vec s[KR][VC];
#pragma GCC unroll 8
    for (int i = 0; i < KR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < VC; ++j) s[i][j] = load(c.state + (i0 + i) * c.V + j0 + j * W);
    for (int64_t t = 0; t < n; ++t) {
        wanted.ask(t);
        const float *r = rs + t * c.K + i0, *k = ks + t * c.K + i0, *decay = c.decay + t * c.K + i0;
        vec v[VC], y[VC];
#pragma GCC unroll 4
        for (int j = 0; j < VC; ++j) {
            v[j] = load(c.v + t * c.V + j0 + j * W);
            y[j] = load(c.y + t * c.V + j0 + j * W);
        }
#pragma GCC unroll 8
        for (int i = 0; i < KR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < VC; ++j) {
                y[j] += r[i] * s[i][j];
                s[i][j] = (SCALED ? s[i][j] : decay[i] * s[i][j]) + k[i] * v[j];
            }
#pragma GCC unroll 4
        for (int j = 0; j < VC; ++j) store(c.y + t * c.V + j0 + j * W, y[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < KR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < VC; ++j)
            store(c.state + (i0 + i) * c.V + j0 + j * W, SCALED ? c.product[i0 + i] * s[i][j] : s[i][j]);
}

// wanted(tile) says what the tile of that number asks for while it computes.
template <bool SCALED, class Ask>
INLINE void forward_keys(const Forward& c, int64_t i0, int64_t n, const Ask& wanted, size_t& tile) {
    int64_t j0 = 0;
    for (; j0 + 4 * W <= c.V; j0 += 4 * W) forward_tile<SCALED, 4>(c, i0, j0, n, wanted(tile++));
    for (; j0 < c.V; j0 += W) forward_tile<SCALED, 1>(c, i0, j0, n, wanted(tile++));
}

template <class Ask>
void forward_chunk(const Forward& c, int64_t n, const Ask& wanted) {
    size_t tile = 0;
    for (int64_t i0 = 0; i0 < c.K; i0 += KR) {
        bool scaled = true;
        for (int i = 0; i < KR; ++i) scaled = scaled && c.product[i0 + i] >= LEAST;
        scaled ? forward_keys<true>(c, i0, n, wanted, tile) : forward_keys<false>(c, i0, n, wanted, tile);
    }
}

// scaled_r, scaled_k and the product of a chunk.
INLINE void scale(const Forward& c, float* scaled_r, float* scaled_k, float* product, int64_t n) {
    for (int64_t i = 0; i < c.K; i += W) {
        vec so_far = splat(1.0f);
        for (int64_t t = 0; t < n; ++t) {
            store(scaled_r + t * c.K + i, load(c.r + t * c.K + i) * so_far);
            so_far *= load(c.decay + t * c.K + i);
            store(scaled_k + t * c.K + i, load(c.k + t * c.K + i) * reciprocal(so_far));
        }
        store(product + i, so_far);
    }
}

// out_t = r_t diag(bonus) k_t^T v_t
INLINE void read_own(const Forward& c, const float* bonus, int64_t n) {
    vec shares[P] = {};
    float weights[P];
    for (int64_t t = 0; t < n; ++t)
        for (int64_t i = 0; i < c.K; i += W)
            shares[t] += load(c.r + t * c.K + i) * load(c.k + t * c.K + i) * load(bonus + i);
    for (int64_t t = 0; t < n; t += W) store(weights + t, sum_lanes(shares + t));
    for (int64_t t = 0; t < n; ++t)
        for (int64_t j = 0; j < c.V; j += W) store(c.y + t * c.V + j, weights[t] * load(c.v + t * c.V + j));
}

template <class E>
struct Inputs {
    const E *r, *k, *v;
    const float *w, *bonus, *state;
};

// What the tiles of a head ask for: P lines each, of the head's inputs from the first position of a piece on. `apart` is
// from a head to the next.
template <class E>
std::vector<Wanted> lines_of(const Row& row, const Inputs<E>& in, const Piece& piece) {
    std::vector<Wanted> tiles;
    const auto add = [&](const auto* input, int64_t from, int64_t used, int64_t width) {
        const int64_t unit = sizeof *input, lines = (used * unit + 63) / 64;
        int shift = 0;
        while (1 << shift < std::min(lines, P)) ++shift;
        const char* first = (const char*)(input + (piece.start * row.heads + piece.head) * width + from);
        for (int64_t t = 0; t < P; t += P >> shift)
            tiles.push_back({first + t * row.heads * width * unit, width * unit, shift});
    };
    for (const E* input : {in.r, in.k}) add(input, 0, row.K, row.K);
    add(in.w, 0, row.K, row.K);
    add(in.v, piece.first, piece.end - piece.first, row.V);
    return tiles;
}

template <class E>
void forward_piece(const Row& row, const Piece& piece, const Inputs<E>& in, E* y, float* after, float* kept) {
    const int64_t K = row.K, V = row.V, H = row.heads, first = piece.first, columns = piece.end - first;
    const int64_t Kp = round_up(K, W), Vp = round_up(columns, W);
    Scratch scratch(P * (5 * Kp + 2 * Vp) + piece.heads * (Kp * Vp + Kp) + 2 * Kp);
    float *r = scratch.take(P * Kp), *k = scratch.take(P * Kp), *decay = scratch.take(P * Kp);
    float *scaled_r = scratch.take(P * Kp), *scaled_k = scratch.take(P * Kp), *product = scratch.take(Kp);
    float *v = scratch.take(P * Vp), *out = scratch.take(P * Vp);
    float *states = scratch.take(piece.heads * Kp * Vp), *bonuses = scratch.take(piece.heads * Kp);
    float* padded = scratch.take(Kp);
    const int64_t base = piece.sequence * H + piece.head, size = row.positions() * H * K;
    for (int64_t h = 0; h < piece.heads; ++h) {
        read_row(bonuses + h * Kp, in.bonus + (piece.head + h) * K, K);
        if (in.state)
            for (int64_t i = 0; i < K; ++i)
                read_row(states + (h * Kp + i) * Vp, in.state + ((base + h) * K + i) * V + first, columns);
    }
    const std::vector<Wanted> lines = lines_of(row, in, piece);
    for (int64_t t0 = piece.start; t0 < piece.stop; t0 += P) {
        const int64_t n = std::min(P, piece.stop - t0), done = t0 - piece.start;
        for (int64_t h = 0; h < piece.heads; ++h) {
            const int64_t head = piece.head + h;
            float* state = states + h * Kp * Vp;
            if (kept && done && done % INTERVAL == 0) {
                float* to = kept + (slot(piece, done) * H + head) * K * V + first;
                for (int64_t i = 0; i < K; ++i) write_large(to + i * V, state + i * Vp, columns, size);
            }
            for (int64_t t = 0; t < n; ++t) {
                const int64_t key = ((t0 + t) * H + head) * K, value = ((t0 + t) * H + head) * V + first;
                read_row(r + t * Kp, in.r + key, K);
                read_row(k + t * Kp, in.k + key, K);
                read_row(v + t * Vp, in.v + value, columns);
                decay_row(decay + t * Kp, nullptr, in.w + key, K, padded);
            }
            const Forward chunk{r, k, decay, scaled_r, scaled_k, product, v, out, state, Kp, Vp};
            read_own(chunk, bonuses + h * Kp, n);
            scale(chunk, scaled_r, scaled_k, product, n);
            // the same positions of the next head, or the next positions of the first one
            const bool last = h + 1 == piece.heads;
            const int64_t next = last ? (std::min(t0 + P, piece.stop - 1) - piece.start) * H : done * H + h + 1;
            forward_chunk(chunk, n, [&](size_t tile) {
                const Wanted& line = lines[std::min(tile, lines.size() - 1)];
                return Wanted{line.first + next * line.apart, H * line.apart, line.shift};
            });
            for (int64_t t = 0; t < n; ++t) write_large(y + ((t0 + t) * H + head) * V + first, out + t * Vp, columns, size);
        }
    }
    for (int64_t h = 0; h < piece.heads; ++h)
        for (int64_t i = 0; i < K; ++i)
            write_row(after + ((base + h) * K + i) * V + first, states + (h * Kp + i) * Vp, columns);
}

// ---------------------------------------------------------------- backward

struct Backward {
    const float* r;  // [P][K]
    const float* k;
    const float* decay;
    const float* v;  // [P][V]
    const float* grad_y;
    float* grad_r;  // [P][K], added to
    float* grad_k;
    float* grad_decay;
    float* grad_v;        // [P][V], added to
    const float* before;  // [V][K]: the state before the chunk
    float* grad_state;    // [V][K]: gradient of the state after the chunk, made that of the state before it
    int64_t K, V;         // padded
};

// The state after n positions.
template <int KC>
INLINE void advance_tile(const Backward& c, float* after, int64_t i0, int64_t j0, int64_t n) {
    Tile<KC> s;
    load_tile<KC>(s, c.before + j0 * c.K + i0, c.K);
    for (int64_t t = 0; t < n; ++t) {
        vec k[KC], decay[KC];
        load_keys(k, c.k + t * c.K + i0);
        load_keys(decay, c.decay + t * c.K + i0);
        const float* v = c.v + t * c.V + j0;
#pragma GCC unroll 4
        for (int j = 0; j < VR; ++j)
#pragma GCC unroll 4
            for (int b = 0; b < KC; ++b) s[j][b] = decay[b] * s[j][b] + k[b] * v[j];
    }
    store_tile<KC>(after + j0 * c.K + i0, s, c.K);
}

template <int KC>
INLINE void backward_tile(const Backward& c, int64_t i0, int64_t j0, int64_t n, Ahead& ahead) {
    Tile<KC> history[P], s;
    vec shares[P * VR];  // of the gradient of v, still spread over the lanes
    load_tile<KC>(s, c.before + j0 * c.K + i0, c.K);
    for (int64_t t = 0; t < n; ++t) {
        vec k[KC], decay[KC], grad_r[KC];
        load_keys(k, c.k + t * c.K + i0);
        load_keys(decay, c.decay + t * c.K + i0);
        load_keys(grad_r, c.grad_r + t * c.K + i0);
        const float *v = c.v + t * c.V + j0, *grad_y = c.grad_y + t * c.V + j0;
#pragma GCC unroll 4
        for (int j = 0; j < VR; ++j)
#pragma GCC unroll 4
            for (int b = 0; b < KC; ++b) {
                history[t][j][b] = s[j][b];
                grad_r[b] += s[j][b] * grad_y[j];
                s[j][b] = decay[b] * s[j][b] + k[b] * v[j];
            }
        store_keys(c.grad_r + t * c.K + i0, grad_r);
    }
    load_tile<KC>(s, c.grad_state + j0 * c.K + i0, c.K);
    for (int64_t t = n - 1; t >= 0; --t) {
        ahead.fetch();
        vec r[KC], k[KC], decay[KC], grad_k[KC], grad_decay[KC];
        load_keys(r, c.r + t * c.K + i0);
        load_keys(k, c.k + t * c.K + i0);
        load_keys(decay, c.decay + t * c.K + i0);
        load_keys(grad_k, c.grad_k + t * c.K + i0);
        load_keys(grad_decay, c.grad_decay + t * c.K + i0);
        const float *v = c.v + t * c.V + j0, *grad_y = c.grad_y + t * c.V + j0;
#pragma GCC unroll 4
        for (int j = 0; j < VR; ++j) {
            vec share{};
#pragma GCC unroll 4
            for (int b = 0; b < KC; ++b) {
                share += s[j][b] * k[b];
                grad_k[b] += s[j][b] * v[j];
                grad_decay[b] += s[j][b] * history[t][j][b];
                s[j][b] = decay[b] * s[j][b] + r[b] * grad_y[j];
            }
            shares[t * VR + j] = share;
        }
        store_keys(c.grad_k + t * c.K + i0, grad_k);
        store_keys(c.grad_decay + t * c.K + i0, grad_decay);
    }
    store_tile<KC>(c.grad_state + j0 * c.K + i0, s, c.K);
    for (int64_t t = 0; t < n; t += W / VR) {
        const vec sums = sum_lanes(shares + t * VR);
        for (int64_t u = t; u < std::min(n, t + W / VR); ++u)
            for (int j = 0; j < VR; ++j) c.grad_v[u * c.V + j0 + j] += sums[(u - t) * VR + j];
    }
}

void advance_chunk(const Backward& c, float* after, int64_t n) {
    for (int64_t j0 = 0; j0 < c.V; j0 += VR) {
        int64_t i0 = 0;
        for (; i0 + KC * W <= c.K; i0 += KC * W) advance_tile<KC>(c, after, i0, j0, n);
        for (; i0 < c.K; i0 += W) advance_tile<1>(c, after, i0, j0, n);
    }
}

void backward_chunk(const Backward& c, int64_t n, Ahead& ahead) {
    for (int64_t j0 = 0; j0 < c.V; j0 += VR) {
        int64_t i0 = 0;
        for (; i0 + KC * W <= c.K; i0 += KC * W) backward_tile<KC>(c, i0, j0, n, ahead);
        for (; i0 < c.K; i0 += W) backward_tile<1>(c, i0, j0, n, ahead);
    }
}

template <class E>
struct Gradients {
    E *r, *k, *v;  // v [parts][T][H][V]: shares, to be summed
    float *w, *bonus, *state;  // bonus [S][H][K]: shares
};

template <class E>
void backward_piece(const Row& row, const Piece& piece, const Inputs<E>& in, const float* kept, const E* grad_y,
                    const float* grad_after, const Gradients<E>& grad) {
    const int64_t K = row.K, V = row.V, H = row.heads, first = piece.first, keys = piece.end - first;
    const int64_t Kp = round_up(keys, W), Vp = round_up(V, W), area = Vp * Kp, chunks = INTERVAL / P;
    Scratch scratch(INTERVAL * (4 * Kp + 2 * Vp) + P * (3 * Kp + Vp) + (chunks + piece.heads) * area +
                    (2 * piece.heads + 1) * Kp);
    float *r = scratch.take(INTERVAL * Kp), *k = scratch.take(INTERVAL * Kp), *decay = scratch.take(INTERVAL * Kp);
    float *slope = scratch.take(INTERVAL * Kp), *v = scratch.take(INTERVAL * Vp), *gy = scratch.take(INTERVAL * Vp);
    float *grad_r = scratch.take(P * Kp), *grad_k = scratch.take(P * Kp), *grad_decay = scratch.take(P * Kp);
    float *grad_v = scratch.take(P * Vp), *states = scratch.take(chunks * area);
    float *grad_states = scratch.take(piece.heads * area), *bonuses = scratch.take(piece.heads * Kp);
    float *grad_bonuses = scratch.take(piece.heads * Kp), *padded = scratch.take(Kp);
    E* const shares = grad.v + piece.part * row.positions() * H * V;
    const int64_t base = piece.sequence * H + piece.head, size = row.positions() * H * K;
    for (int64_t h = 0; h < piece.heads; ++h) {
        read_row(bonuses + h * Kp, in.bonus + (piece.head + h) * K + first, keys);
        if (grad_after)
            transpose(grad_after + ((base + h) * K + first) * V, V, grad_states + h * area, Kp, keys, V);
    }
    Ahead ahead;
    const int64_t length = piece.stop - piece.start;
    for (int64_t done = (length - 1) / INTERVAL * INTERVAL; done >= 0; done -= INTERVAL) {
        const int64_t t0 = piece.start + done, n = std::min(INTERVAL, piece.stop - t0);
        for (int64_t h = 0; h < piece.heads; ++h) {
            const int64_t head = piece.head + h;
            const float* bonus = bonuses + h * Kp;
            float* grad_bonus = grad_bonuses + h * Kp;
            for (int64_t t = 0; t < n; ++t) {
                const int64_t key = ((t0 + t) * H + head) * K + first, value = ((t0 + t) * H + head) * V;
                read_row(r + t * Kp, in.r + key, keys);
                read_row(k + t * Kp, in.k + key, keys);
                read_row(v + t * Vp, in.v + value, V);
                read_row(gy + t * Vp, grad_y + value, V);
                decay_row(decay + t * Kp, slope + t * Kp, in.w + key, keys, padded);
            }
            if (done)
                transpose(kept + (slot(piece, done) * H + head) * K * V + first * V, V, states, Kp, keys, V);
            else if (in.state)
                transpose(in.state + ((base + h) * K + first) * V, V, states, Kp, keys, V);
            else
                std::memset(states, 0, area * sizeof(float));
            const auto chunk = [&](int64_t c) {
                const int64_t key = c * P * Kp, value = c * P * Vp;
                return Backward{r + key,     k + key,    decay + key,       v + value,
                                gy + value,  grad_r,     grad_k,            grad_decay,
                                grad_v,      states + c * area, grad_states + h * area, Kp, Vp};
            };
            const int64_t last = (n - 1) / P;
            for (int64_t c = 0; c < last; ++c) advance_chunk(chunk(c), states + (c + 1) * area, P);
            for (int64_t c = last; c >= 0; --c) {
                const Backward here = chunk(c);
                const int64_t m = std::min(P, n - c * P);
                for (int64_t t = 0; t < m; ++t) {
                    const float *rt = here.r + t * Kp, *kt = here.k + t * Kp;
                    const float from_bonus = dot(here.v + t * Vp, here.grad_y + t * Vp, Vp);
                    vec own{};
                    for (int64_t i = 0; i < Kp; i += W) {
                        const vec u = load(bonus + i), rk = load(rt + i) * load(kt + i);
                        own += u * rk;
                        store(grad_r + t * Kp + i, u * load(kt + i) * from_bonus);
                        store(grad_k + t * Kp + i, u * load(rt + i) * from_bonus);
                        store(grad_decay + t * Kp + i, vec{});
                        store(grad_bonus + i, load(grad_bonus + i) + rk * from_bonus);
                    }
                    const float weight = sum(own);
                    for (int64_t j = 0; j < Vp; j += W) store(grad_v + t * Vp + j, weight * load(here.grad_y + t * Vp + j));
                }
                const int64_t next = h + 1 < piece.heads ? head + 1 : piece.head;
                const int64_t from = (h + 1 < piece.heads ? t0 : t0 - INTERVAL) + c * P;
                ahead.clear();
                for (int64_t t = from; t >= piece.start && t < std::min(piece.stop, from + P); ++t) {
                    ahead.add(in.r + (t * H + next) * K + first, keys);
                    ahead.add(in.k + (t * H + next) * K + first, keys);
                    ahead.add(in.w + (t * H + next) * K + first, keys);
                    ahead.add(in.v + (t * H + next) * V, V);
                    ahead.add(grad_y + (t * H + next) * V, V);
                }
                backward_chunk(here, m, ahead);
                for (int64_t t = 0; t < m; ++t) {
                    const int64_t position = t0 + c * P + t, key = (position * H + head) * K + first;
                    for (int64_t i = 0; i < Kp; i += W)
                        store(grad_decay + t * Kp + i, load(grad_decay + t * Kp + i) * load(slope + (c * P + t) * Kp + i));
                    write_large(grad.r + key, grad_r + t * Kp, keys, size);
                    write_large(grad.k + key, grad_k + t * Kp, keys, size);
                    write_large(grad.w + key, grad_decay + t * Kp, keys, size);
                    write_large(shares + (position * H + head) * V, grad_v + t * Vp, V, size);
                }
            }
        }
    }
    for (int64_t h = 0; h < piece.heads; ++h) {
        transpose(grad_states + h * area, Kp, grad.state + ((base + h) * K + first) * V, V, V, keys);
        write_row(grad.bonus + (base + h) * K + first, grad_bonuses + h * Kp, keys);
    }
}

template <class E>
void forward(const Row& row, const Inputs<E>& in, E* y, float* after, float* kept) {
    const int64_t states = row.positions() / INTERVAL + row.sequences;
    prepare(y, row.positions() * row.heads * row.V);
    prepare(kept, states * row.heads * row.K * row.V);
    row.share(row.V, W, [&](const Piece& piece) { forward_piece(row, piece, in, y, after, kept); });
}

template <class E>
void backward(const Row& row, const Inputs<E>& in, const float* kept, const E* grad_y, const float* grad_after,
              const Gradients<E>& grad) {
    const int64_t keys = row.positions() * row.heads * row.K;
    prepare(grad.r, keys);
    prepare(grad.k, keys);
    prepare(grad.w, keys);
    prepare(grad.v, row.positions() * row.heads * row.V * row.cuts(row.K, W).count);
    row.share(row.K, W, [&](const Piece& piece) { backward_piece(row, piece, in, kept, grad_y, grad_after, grad); });
}

}  // namespace

extern "C" {

// Positions between two states of `kept`, which holds [T / interval + S][H][K][V] of them.
int64_t wkv6_interval() { return INTERVAL; }

// How many shares of the gradient of v there will be.
int64_t wkv6_shares(const int64_t* bounds, int64_t S, int64_t H, int64_t K, int64_t V, int threads) {
    return Row{bounds, S, H, K, V, threads}.cuts(K, W).count;
}

// r, k, v and y are float32, or all bfloat16 where `half`; state and kept may be null.
void wkv6_forward(int half, const void* r, const void* k, const void* v, const float* w, const float* bonus,
                  const float* state, const int64_t* bounds, int64_t S, int64_t H, int64_t K, int64_t V, int threads,
                  void* y, float* after, float* kept) {
    const auto run = [&](auto element) {
        using E = decltype(element);
        const Inputs<E> in{(const E*)r, (const E*)k, (const E*)v, w, bonus, state};
        forward<E>(Row{bounds, S, H, K, V, threads}, in, (E*)y, after, kept);
    };
    half ? run(bf16{}) : run(float{});
}

// grad_r, grad_k, grad_v [shares][T][H][V] in the dtype of r; grad_w, grad_bonus [S][H][K] and grad_state in float32.
// grad_after may be null.
void wkv6_backward(int half, const void* r, const void* k, const void* v, const float* w, const float* bonus,
                   const float* state, const int64_t* bounds, int64_t S, int64_t H, int64_t K, int64_t V, int threads,
                   const float* kept, const void* grad_y, const float* grad_after, void* grad_r, void* grad_k,
                   void* grad_v, float* grad_w, float* grad_bonus, float* grad_state) {
    const auto run = [&](auto element) {
        using E = decltype(element);
        const Inputs<E> in{(const E*)r, (const E*)k, (const E*)v, w, bonus, state};
        const Gradients<E> grad{(E*)grad_r, (E*)grad_k, (E*)grad_v, grad_w, grad_bonus, grad_state};
        backward<E>(Row{bounds, S, H, K, V, threads}, in, kept, (const E*)grad_y, grad_after, grad);
    };
    half ? run(bf16{}) : run(float{});
}
}
