// Multi-scale deformable attention on the CPU, forward and backward.
//
// Plain C interface, nothing of PyTorch or Python: see ovformer/ops/ms_deform_attn_cpu.py, which
// compiles and calls it. All arrays are contiguous:
//
//   value, grad_value          (N, S, M, D)           shapes  (L, 2) height and width of each level
//   locations, grad_locations  (N, Lq, M, L, P, 2)    starts  (L,)   first token of each level
//   weights, grad_weights      (N, Lq, M, L, P)
//   output, grad_output        (N, Lq, M, D)
//
// N batch, S tokens of all levels, M heads, D channels of a head, Lq queries, L levels, P points.
//
// The channels of a head lie side by side, so each corner of a sample is a few vectors of D. Every
// number is computed by one thread in one order: results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr int kWidest = 64;  // bytes of a vector
#elif defined(__AVX__)
constexpr int kWidest = 32;
#else
constexpr int kWidest = 16;
#endif

struct Sizes {
  int64_t batch, tokens, heads, channels, queries, levels, points;
  const int64_t* shapes;
  const int64_t* starts;
  int threads;
};

// BYTES bytes of numbers of type T, as one variable.
template <typename T, int BYTES>
struct Simd {
  typedef T Vector __attribute__((vector_size(BYTES)));
  static constexpr int kLanes = BYTES / sizeof(T);

  static Vector load(const T* from) {
    Vector vector;
    std::memcpy(&vector, from, BYTES);
    return vector;
  }

  static void store(T* to, Vector vector) { std::memcpy(to, &vector, BYTES); }

  static T sum(Vector vector) {
    if constexpr (kLanes == 1) {
      return vector[0];
    } else {
      using Half = Simd<T, BYTES / 2>;
      typename Half::Vector halves[2];
      std::memcpy(halves, &vector, BYTES);
      return Half::sum(halves[0] + halves[1]);
    }
  }
};

// The four pixels around a place, of which some may be outside of the map.
template <typename T>
struct Corners {
  int64_t first;      // pixel up left: row * width + column
  T right, down;      // shares of the pixels to the right and below, 0 to 1
  bool inside[4];     // up left, up right, down left, down right

  // Return whether any pixel is inside. False for what is no number.
  bool find(const T* location, int64_t height, int64_t width) {
    const T x = location[0] * width - T(0.5), y = location[1] * height - T(0.5);
    if (!(x >= -1 && x < width && y >= -1 && y < height)) return false;
    const T column = std::floor(x), row = std::floor(y);
    const int64_t i = static_cast<int64_t>(row), j = static_cast<int64_t>(column);
    first = i * width + j;
    right = x - column;
    down = y - row;
    const bool left_in = j >= 0, right_in = j + 1 < width;
    const bool up_in = i >= 0, down_in = i + 1 < height;
    inside[0] = up_in && left_in;
    inside[1] = up_in && right_in;
    inside[2] = down_in && left_in;
    inside[3] = down_in && right_in;
    return true;
  }
};

// The output of one head of one query, BLOCK vectors of it. The head's first token is at `first`.
template <typename T, int BYTES, int BLOCK>
void forward_block(const Sizes& sizes, const T* value, int64_t first, const T* locations,
                   const T* weights, T* output) {
  using S = Simd<T, BYTES>;
  const int64_t stride = sizes.heads * sizes.channels;
  typename S::Vector sums[BLOCK] = {};
  for (int64_t level = 0; level < sizes.levels; ++level) {
    const int64_t height = sizes.shapes[2 * level], width = sizes.shapes[2 * level + 1];
    const int64_t map = first + sizes.starts[level] * stride;
    for (int64_t point = 0; point < sizes.points; ++point, locations += 2, ++weights) {
      Corners<T> corners;
      if (!corners.find(locations, height, width)) continue;
      auto visit = [&](int corner, int64_t pixel, T share) {
        if (!corners.inside[corner]) return;
        const T* from = value + map + pixel * stride;
        for (int b = 0; b < BLOCK; ++b) sums[b] += share * S::load(from + b * S::kLanes);
      };
      const T below = *weights * corners.down, above = *weights - below;
      visit(0, corners.first, above - above * corners.right);
      visit(1, corners.first + 1, above * corners.right);
      visit(2, corners.first + width, below - below * corners.right);
      visit(3, corners.first + width + 1, below * corners.right);
    }
  }
  for (int b = 0; b < BLOCK; ++b) S::store(output + b * S::kLanes, sums[b]);
}

template <typename T, int BYTES>
struct Forward {
  static void run(const Sizes& sizes, const T* value, const T* locations, const T* weights,
                  T* output) {
    constexpr int64_t lanes = Simd<T, BYTES>::kLanes;
    const int64_t samples = sizes.levels * sizes.points, channels = sizes.channels;
#pragma omp parallel for schedule(dynamic, 64) num_threads(sizes.threads)
    for (int64_t query = 0; query < sizes.batch * sizes.queries; ++query) {
      for (int64_t head = 0; head < sizes.heads; ++head) {
        const int64_t row = query * sizes.heads + head;
        const int64_t sample = query / sizes.queries;
        const int64_t first = (sample * sizes.tokens * sizes.heads + head) * channels;
        const T* places = locations + row * samples * 2;
        const T* shares = weights + row * samples;
        T* to = output + row * channels;
        int64_t c = 0;
        for (; c + 4 * lanes <= channels; c += 4 * lanes)
          forward_block<T, BYTES, 4>(sizes, value, first + c, places, shares, to + c);
        for (; c + 2 * lanes <= channels; c += 2 * lanes)
          forward_block<T, BYTES, 2>(sizes, value, first + c, places, shares, to + c);
        for (; c + lanes <= channels; c += lanes)
          forward_block<T, BYTES, 1>(sizes, value, first + c, places, shares, to + c);
      }
    }
  }
};

// The gradients that come from one head of one level of one batch element. `map` and `grad_map`
// hold its pixels' channels close together, which is kind to the cache.
template <typename T, int BYTES>
void backward_level(const Sizes& sizes, int64_t sample, int64_t head, int64_t level,
                    const T* grad_output, const T* map, const T* locations, const T* weights,
                    T* grad_map, T* grad_locations, T* grad_weights) {
  using S = Simd<T, BYTES>;
  const int64_t height = sizes.shapes[2 * level], width = sizes.shapes[2 * level + 1];
  const int64_t channels = sizes.channels;
  for (int64_t query = 0; query < sizes.queries; ++query) {
    const int64_t row = (sample * sizes.queries + query) * sizes.heads + head;
    const T* grad = grad_output + row * channels;
    const int64_t begin = (row * sizes.levels + level) * sizes.points;
    for (int64_t i = begin; i < begin + sizes.points; ++i) {
      grad_locations[2 * i] = grad_locations[2 * i + 1] = grad_weights[i] = 0;
      Corners<T> corners;
      if (!corners.find(locations + 2 * i, height, width)) continue;
      const T weight = weights[i], right = corners.right, down = corners.down;
      T products[4] = {};  // of each corner's value and the gradient
      auto visit = [&](int corner, int64_t pixel, T share) {
        if (!corners.inside[corner]) return;
        const T* from = map + pixel * channels;
        T* to = grad_map + pixel * channels;
        typename S::Vector product = {};
        for (int64_t c = 0; c < channels; c += S::kLanes) {
          const typename S::Vector g = S::load(grad + c);
          product += g * S::load(from + c);
          S::store(to + c, S::load(to + c) + weight * share * g);
        }
        products[corner] = S::sum(product);
      };
      visit(0, corners.first, (1 - right) * (1 - down));
      visit(1, corners.first + 1, right * (1 - down));
      visit(2, corners.first + width, (1 - right) * down);
      visit(3, corners.first + width + 1, right * down);
      const T above = products[1] - products[0], below = products[3] - products[2];
      const T top = products[0] + right * above, bottom = products[2] + right * below;
      grad_weights[i] = top + down * (bottom - top);
      grad_locations[2 * i] = weight * width * (above + down * (below - above));
      grad_locations[2 * i + 1] = weight * height * (bottom - top);
    }
  }
}

template <typename T, int BYTES>
struct Backward {
  // A task is one head of one level of one batch element: no two write to the same place.
  static void run(const Sizes& sizes, const T* grad_output, const T* value, const T* locations,
                  const T* weights, T* grad_value, T* grad_locations, T* grad_weights) {
    const int64_t channels = sizes.channels, stride = sizes.heads * channels;
    int64_t pixels = 0;
    for (int64_t level = 0; level < sizes.levels; ++level)
      pixels = std::max(pixels, sizes.shapes[2 * level] * sizes.shapes[2 * level + 1]);
    const size_t room = pixels * channels;
    std::unique_ptr<T[]> rooms(new T[2 * room * sizes.threads]);
    // Static: neighbours in memory go to the same thread, so that no two write to one cache line.
#pragma omp parallel for schedule(static) num_threads(sizes.threads)
    for (int64_t task = 0; task < sizes.batch * sizes.heads * sizes.levels; ++task) {
      const int64_t level = task % sizes.levels, head = task / sizes.levels % sizes.heads;
      const int64_t sample = task / sizes.levels / sizes.heads;
      const int64_t length = sizes.shapes[2 * level] * sizes.shapes[2 * level + 1];
      const int64_t first =
          (sample * sizes.tokens + sizes.starts[level]) * stride + head * channels;
      T* map = rooms.get() + 2 * room * omp_get_thread_num();
      T* grad_map = map + room;
      for (int64_t i = 0; i < length; ++i)
        std::memcpy(map + i * channels, value + first + i * stride, channels * sizeof(T));
      std::fill(grad_map, grad_map + length * channels, T(0));
      backward_level<T, BYTES>(sizes, sample, head, level, grad_output, map, locations, weights,
                               grad_map, grad_locations, grad_weights);
      for (int64_t i = 0; i < length; ++i)
        std::memcpy(grad_value + first + i * stride, grad_map + i * channels,
                    channels * sizeof(T));
    }
  }
};

// Run with the widest vectors that the channels can be cut into. Returns 0, or 1: out of memory.
template <template <typename, int> class Function, typename T, typename... Arrays>
int run(const Sizes& sizes, Arrays... arrays) {
  const int64_t bytes = sizes.channels * sizeof(T);
  try {
    if (bytes % kWidest == 0)
      Function<T, kWidest>::run(sizes, arrays...);
    else if (bytes % 32 == 0 && kWidest > 32)
      Function<T, 32>::run(sizes, arrays...);
    else if (bytes % 16 == 0)
      Function<T, 16>::run(sizes, arrays...);
    else
      Function<T, sizeof(T)>::run(sizes, arrays...);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // namespace

#define OVFORMER_MSDA(T, SUFFIX)                                                                 \
  extern "C" int ms_deform_attn_forward_##SUFFIX(const Sizes* sizes, const T* value,             \
                                                 const T* locations, const T* weights,           \
                                                 T* output) {                                    \
    return run<Forward, T>(*sizes, value, locations, weights, output);                           \
  }                                                                                              \
  extern "C" int ms_deform_attn_backward_##SUFFIX(                                               \
      const Sizes* sizes, const T* grad_output, const T* value, const T* locations,              \
      const T* weights, T* grad_value, T* grad_locations, T* grad_weights) {                     \
    return run<Backward, T>(*sizes, grad_output, value, locations, weights, grad_value,          \
                            grad_locations, grad_weights);                                       \
  }

OVFORMER_MSDA(float, float32)
OVFORMER_MSDA(double, float64)
