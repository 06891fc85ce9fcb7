// Products with weights that lie in the caches, at the speed of arithmetic. Every output is one sum over the inputs in
// their order, so it depends neither on how many rows there are nor on which thread computes it.
//
// Shape letters: M rows, K inputs, N outputs.

#pragma once

#include <type_traits>

#include "common.h"

namespace aurora {

constexpr int ROWS = W == 16 ? 12 : 4;  // of one tile: its sums, two vectors in each row, stay in registers
constexpr int PANEL = 2 * W;

// to [W][W] = from [W][W] with rows and columns exchanged: each round halves the distance of what is to be neighbours
INLINE void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    constexpr std::make_integer_sequence<int, W> lanes{};
    vec x[W], y[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = load(from + i * from_stride);
#pragma GCC unroll 4
    for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; ++i) {
            y[2 * i] = interleave_low(x[i], x[i + W / 2], lanes);
            y[2 * i + 1] = interleave_high(x[i], x[i + W / 2], lanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) x[i] = y[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(to + i * to_stride, x[i]);
}

// R rows of x times a panel [K][PANEL] of weights: sums [R][2]
template <int R>
INLINE void multiply_tile(const float* x, int64_t x_stride, const float* panel, int64_t K, vec (&sums)[R][2]) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = splat(0.0f);
    for (int64_t k = 0; k < K; ++k) {
        const vec w0 = load(panel + k * PANEL), w1 = load(panel + k * PANEL + W);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const float factor = x[r * x_stride + k];
            sums[r][0] += factor * w0;
            sums[r][1] += factor * w1;
        }
    }
}

// R rows of one panel of outputs, of which `width` exist: y = product + bias, added to y where it `adds`
template <int R>
INLINE void write_tile(const float* x, int64_t x_stride, const float* panel, const float* bias, int64_t K, bool adds,
                       float* y, int64_t y_stride, int64_t width) {
    vec sums[R][2];
    multiply_tile<R>(x, x_stride, panel, K, sums);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        float* to = y + r * y_stride;
        const vec first = sums[r][0] + load(bias), second = sums[r][1] + load(bias + W);
        if (width == PANEL) {
            store(to, adds ? load(to) + first : first);
            store(to + W, adds ? load(to + W) + second : second);
            continue;
        }
        float out[PANEL];
        store(out, first);
        store(out + W, second);
        for (int64_t n = 0; n < width; ++n) to[n] = adds ? to[n] + out[n] : out[n];
    }
}

// Weights [N, K] and a bias [N], or none, laid out for products: panels [K][PANEL] of outputs with their biases behind,
// zeros where there are no more outputs.
class Packed {
  public:
    void pack(const float* w, int64_t w_stride, const float* bias, int64_t N, int64_t K) {
        N_ = N;
        K_ = K;
        panels_ = room(held_, (N + PANEL - 1) / PANEL * panel_size());
        for (int64_t n = 0; n < N; n += PANEL) {
            const int64_t width = std::min<int64_t>(PANEL, N - n), whole = width == PANEL ? K / W * W : 0;
            const float* rows = w + n * w_stride;
            float *panel = panels_ + n / PANEL * panel_size(), *shift = panel + K * PANEL;
            if (width < PANEL) std::fill(panel, shift, 0.0f);
            for (int64_t k = 0; k < whole; k += W)
                for (int half = 0; half < PANEL; half += W)
                    transpose_square(rows + half * w_stride + k, w_stride, panel + k * PANEL + half, PANEL);
            transpose(rows + whole, w_stride, panel + whole * PANEL, PANEL, width, K - whole);
            std::fill(shift, shift + PANEL, 0.0f);
            if (bias) std::copy(bias + n, bias + n + width, shift);
        }
    }

    // y [M, N] = x [M, K] times the weights, plus the bias; added to y where it `adds`. Rows lie their strides apart.
    void multiply(const float* x, int64_t x_stride, bool adds, float* y, int64_t y_stride, int64_t M) const {
        for (int64_t n = 0; n < N_; n += PANEL) {
            const float *panel = panels_ + n / PANEL * panel_size(), *shift = panel + K_ * PANEL;
            int64_t m = 0;
            const auto tiles = [&](auto rows) {
                constexpr int R = decltype(rows)::value;
                for (; m + R <= M; m += R)
                    write_tile<R>(x + m * x_stride, x_stride, panel, shift, K_, adds, y + m * y_stride + n, y_stride,
                                  std::min<int64_t>(PANEL, N_ - n));
            };
            tiles(std::integral_constant<int, ROWS>{});
            tiles(std::integral_constant<int, 4>{});
            tiles(std::integral_constant<int, 1>{});
        }
    }

  private:
    int64_t panel_size() const { return (K_ + 1) * PANEL; }

    std::vector<float> held_;
    float* panels_ = nullptr;
    int64_t N_ = 0, K_ = 0;
};

}  // namespace aurora
