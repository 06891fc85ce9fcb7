// A small vision transformer in one call: patches, then blocks of attention, merging of similar tokens (ToMe), reading
// by size, and MLP.
//
// What stands between the products is done by the kernels of `attention.cpp` and `vision.cpp`, whose addresses are
// given. Some frames at a time go through all blocks, and few of them through each, so that weights and tokens stay in
// the caches; every thread has frames of its own.
// Shape letters: N frames of h by w pixels, P patches of p by p pixels, M tokens of the moment, G those after a merge,
// C width, F width of the MLP, H heads, K head width or inputs of a product.

#include <cmath>

#include "gemm.h"

namespace {

using namespace aurora;

constexpr int64_t AT_ONCE = 1024;  // tokens that go through all blocks before the next ones
constexpr int64_t FEW = 128;       // of them, through one block

// What the embedding of patches points to: weight [C, 3 p p] and bias, and what is added at each place [P, C].
enum Embedding { PATCH, PATCH_BIAS, POSITIONS, BLOCKS };

// What a block points to, in the order in which its pointers are given behind those: weights [outputs, inputs] and
// biases.
enum Field {
    NORM_ATTENTION, NORM_ATTENTION_BIAS, QKV, QKV_BIAS, OUT, OUT_BIAS,
    NORM_MLP, NORM_MLP_BIAS, UP, UP_BIAS, DOWN, DOWN_BIAS, FIELDS,
};

struct Kernels {
    int (*attention)(const void*, const void*, const void*, const int64_t*, const float*, void*, int64_t, int64_t,
                     int64_t, int64_t, int, int);
    void (*gelu_tanh)(void*, int64_t, int, int);
    void (*mean_direction)(const void*, int64_t, int64_t, int64_t, float*, int64_t, int64_t, int64_t, int64_t, int,
                           int);
    void (*match_pairs)(const float*, int64_t*, int64_t*, int64_t*, int64_t, int64_t, int64_t, int64_t, int);
    int64_t (*absorb)(const void*, const float*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, void*,
                      float*, int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int, int);
    int64_t (*reorder)(const char*, const float*, const int64_t*, const int64_t*, char*, float*, int64_t*, int64_t,
                       int64_t, int64_t, int64_t);
};

struct Sizes {
    int64_t blocks, width, mlp, heads;
    int64_t rows, columns, side;  // patches, and pixels along a side of one
    int64_t by_size;  // the order after a merge: 0 as it is, 1 ascending, -1 descending by size
    int64_t proportional;  // whether log(size) is added to the scores of each key

    int64_t patches() const { return rows * columns; }
};

// Room for n, kept for the next frames: what is in it does not matter.
template <class T>
void grow(std::vector<T>& held, int64_t n) {
    if (int64_t(held.size()) < n) held.resize(n);
}

// Some frames on their way through the blocks.
class Frames {
  public:
    void begin(const Sizes& size, const Kernels& kernels, float eps) {
        size_ = size;
        kernels_ = kernels;
        eps_ = eps;
    }

    // pixels [N, 3, h, w] → features [N, M, C], sizes [N, M], owners [N, P]; false where a kernel refuses its input
    bool pass(const float* const* pointers, const int64_t* removed, const uint8_t* pixels, int64_t frames, float* out,
              float* sizes, int64_t* owners) {
        M_ = size_.patches();
        const int64_t C = size_.width, P = M_;
        grow(x_, frames * P * C);
        sizes_.assign(frames * P, 1.0f);
        grow(owners_, frames * P);
        for (int64_t i = 0; i < frames * P; ++i) owners_[i] = i % P;
        embed(pointers, pixels, frames);
        for (int64_t block = 0; block < size_.blocks; ++block) {
            const int64_t G = M_ - removed[block];
            pack_weights(pointers + BLOCKS + block * FIELDS);
            if (G < M_) {
                grow(next_x_, frames * G * C);
                grow(next_sizes_, frames * G);
                grow(next_owners_, frames * P);
            }
            const int64_t few = std::max<int64_t>(1, FEW / M_);
            for (int64_t n = 0; n < frames; n += few) {
                const int64_t count = std::min(few, frames - n);
                attend(n, count);
                if (G < M_ && !merge(n, count, removed[block])) return false;
                mlp((G < M_ ? next_x_ : x_).data() + n * G * C, count * G);
                if (G < M_ && size_.by_size && !sort(n, count, G)) return false;
            }
            if (G < M_) {
                x_.swap(next_x_);
                sizes_.swap(next_sizes_);
                owners_.swap(next_owners_);
            }
            M_ = G;
        }
        std::copy_n(x_.data(), frames * M_ * C, out);
        std::copy_n(sizes_.data(), frames * M_, sizes);
        std::copy_n(owners_.data(), frames * P, owners);
        return true;
    }

  private:
    void embed(const float* const* weights, const uint8_t* pixels, int64_t frames) {
        const int64_t side = size_.side, width = size_.columns * side, height = size_.rows * side;
        const int64_t K = 3 * side * side, P = size_.patches(), C = size_.width;
        up_.pack(weights[PATCH], K, weights[PATCH_BIAS], C, K);
        grow(wide_, P * K);
        for (int64_t n = 0; n < frames; ++n) {
            float* to = wide_.data();
            for (int64_t row = 0; row < size_.rows; ++row)
                for (int64_t column = 0; column < size_.columns; ++column)
                    for (int64_t line = 0; line < 3 * side; ++line, to += side) {
                        const int64_t channel = n * 3 + line / side, y = row * side + line % side;
                        const uint8_t* from = pixels + (channel * height + y) * width + column * side;
                        for (int64_t i = 0; i < side; ++i) to[i] = from[i] / 127.5f - 1;  // SigLIP's mean and deviation
                    }
            std::copy_n(weights[POSITIONS], P * C, &x_[n * P * C]);
            up_.multiply(wide_.data(), K, true, &x_[n * P * C], C, P);
        }
    }

    // The weights of the next block.
    void pack_weights(const float* const* weights) {
        const int64_t C = size_.width, F = size_.mlp;
        weights_ = weights;
        qkv_.pack(weights[QKV], C, weights[QKV_BIAS], 3 * C, C);
        out_.pack(weights[OUT], C, weights[OUT_BIAS], C, C);
        up_.pack(weights[UP], C, weights[UP_BIAS], F, C);
        down_.pack(weights[DOWN], F, weights[DOWN_BIAS], C, F);
    }

    void normalise(const float* x, int64_t tokens, int weight, int bias) {
        const int64_t C = size_.width;
        grow(normal_, tokens * C);
        for (int64_t i = 0; i < tokens; ++i)
            layer_norm(x + i * C, weights_[weight], weights_[bias], eps_, &normal_[i * C], C);
    }

    // x += attention of the frames from n on, whose queries, keys and values are in wide_ then
    void attend(int64_t n, int64_t frames) {
        const int64_t C = size_.width, K = C / size_.heads, tokens = frames * M_;
        float* x = &x_[n * M_ * C];
        normalise(x, tokens, NORM_ATTENTION, NORM_ATTENTION_BIAS);
        grow(wide_, tokens * 3 * C);
        qkv_.multiply(normal_.data(), C, false, wide_.data(), 3 * C, tokens);
        const bool shifts = size_.proportional && M_ < size_.patches();
        grow(shift_, tokens);
        for (int64_t i = 0; shifts && i < tokens; ++i) shift_[i] = std::log(sizes_[n * M_ + i]);
        const int64_t frame = M_ * 3 * C, token = 3 * C;
        const int64_t strides[9] = {frame, token, K, frame, token, K, frame, token, K};
        const float* wide = wide_.data();
        kernels_.attention(wide, wide + C, wide + 2 * C, strides, shifts ? shift_.data() : nullptr, normal_.data(),
                           frames, size_.heads, M_, K, 0, 1);
        out_.multiply(normal_.data(), C, true, x, C, tokens);
    }

    // The even tokens that are most like an odd one go into that one.
    bool merge(int64_t n, int64_t frames, int64_t removed) {
        const int64_t C = size_.width, K = C / size_.heads, P = size_.patches();
        const int64_t even = (M_ + 1) / 2, odd = M_ / 2, G = M_ - removed;
        grow(direction_, frames * M_ * K);
        kernels_.mean_direction(wide_.data() + C, M_ * 3 * C, 3 * C, K, direction_.data(), frames, M_, size_.heads, K,
                                0, 1);
        grow(scores_, frames * even * odd);
        for (int64_t i = 0; i < frames; ++i) {
            const float* rows = &direction_[i * M_ * K];
            odd_.pack(rows + K, 2 * K, nullptr, odd, K);
            odd_.multiply(rows, 2 * K, false, &scores_[i * even * odd], odd, even);
        }
        grow(order_, frames * (G + 2 * removed));
        int64_t *survivors = order_.data(), *sources = survivors + frames * G, *into = sources + frames * removed;
        kernels_.match_pairs(scores_.data(), survivors, sources, into, frames, even, odd, removed, 1);
        return kernels_.absorb(&x_[n * M_ * C], &sizes_[n * M_], &owners_[n * P], survivors, sources, into,
                               &next_x_[n * G * C], &next_sizes_[n * G], &next_owners_[n * P], frames, M_, G, P, C, 0,
                               1);
    }

    // x += MLP
    void mlp(float* x, int64_t tokens) {
        const int64_t C = size_.width, F = size_.mlp;
        normalise(x, tokens, NORM_MLP, NORM_MLP_BIAS);
        grow(wide_, tokens * F);
        up_.multiply(normal_.data(), C, false, wide_.data(), F, tokens);
        kernels_.gelu_tanh(wide_.data(), tokens * F, 0, 1);
        down_.multiply(wide_.data(), F, true, x, C, tokens);
    }

    // The tokens after a merge by the number of patches that each stands for.
    bool sort(int64_t n, int64_t frames, int64_t tokens) {
        const int64_t C = size_.width, P = size_.patches();
        float *x = &next_x_[n * tokens * C], *sizes = &next_sizes_[n * tokens];
        int64_t* owners = &next_owners_[n * P];
        grow(order_, frames * tokens);
        for (int64_t i = 0; i < frames; ++i) {
            const float* of = sizes + i * tokens;
            int64_t* order = &order_[i * tokens];
            std::iota(order, order + tokens, 0);
            std::stable_sort(order, order + tokens, [&](int64_t a, int64_t b) {
                return size_.by_size > 0 ? of[a] < of[b] : of[a] > of[b];
            });
        }
        normal_.assign(x, x + frames * tokens * C);
        shift_.assign(sizes, sizes + frames * tokens);
        followed_.assign(owners, owners + frames * P);
        return kernels_.reorder((const char*)normal_.data(), shift_.data(), followed_.data(), order_.data(), (char*)x,
                                sizes, owners, frames, tokens, P, C * sizeof(float));
    }

    Sizes size_{};
    Kernels kernels_{};
    float eps_ = 0;
    const float* const* weights_ = nullptr;
    int64_t M_ = 0;
    Packed qkv_, out_, up_, down_, odd_;
    std::vector<float> x_, next_x_, normal_, wide_, sizes_, next_sizes_, shift_, direction_, scores_;
    std::vector<int64_t> owners_, next_owners_, order_, followed_;
};

}  // namespace

// pixels [N, 3, h, w] → features [N, M, C], sizes [N, M] and owners [N, P], M being P less all that is removed. sizes:
// blocks, width, width of the MLP, heads, rows and columns of patches, their side, order, proportional attention. Gives
// 0 where a kernel refuses its input.
extern "C" int64_t vit_read(const int64_t* sizes, float eps, const void* const* pointers, const void* const* kernels,
                            const int64_t* removed, const uint8_t* pixels, float* out, float* out_sizes,
                            int64_t* owners, int64_t frames, int threads) {
    const Sizes size{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]};
    const Kernels& use = *(const Kernels*)kernels;
    const int64_t P = size.patches(), C = size.width, frame = 3 * P * size.side * size.side;
    const int64_t M = P - std::accumulate(removed, removed + size.blocks, int64_t(0));
    const int64_t share = (frames + threads - 1) / threads;
    const int64_t together = std::max<int64_t>(1, std::min(share, AT_ONCE / P));
    const int64_t parts = (frames + together - 1) / together;
    int64_t refused = 0;
    static thread_local Frames some;
#pragma omp parallel num_threads(threads) reduction(+ : refused)
    {
        some.begin(size, use, eps);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t n = part * together;
            refused += !some.pass((const float* const*)pointers, removed, pixels + n * frame,
                                  std::min(together, frames - n), out + n * M * C, out_sizes + n * M, owners + n * P);
        }
    }
    return !refused;
}
