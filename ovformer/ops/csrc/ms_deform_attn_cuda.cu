// Multi-scale deformable attention on NVIDIA GPUs, forward and backward.
//
// Plain C interface, nothing of PyTorch or Python: see ovformer/ops/build.py, which compiles it, and
// ovformer/ops/ms_deform_attn_cuda.py, which calls it. All arrays are contiguous and on the GPU, but
// for shapes and starts:
//
//   value                      (N, S, M, D)           shapes  (L, 2) height and width of each level
//   locations, grad_locations  (N, Lq, M, L, P, 2)    starts  (L,)   first token of each level
//   weights, grad_weights      (N, Lq, M, L, P)
//   output, grad_output        (N, Lq, M, D)
//   grad_value                 (N, S, M, D), zeros at first
//
// N batch, S tokens of all levels, M heads, D channels of a head, Lq queries, L levels, P points.
// A row is one head of one query. T is the type of value and output, A that of sums, places, weights
// and all gradients. V channels, 16 bytes of T where D allows it, are read at once.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace {

constexpr int kThreads = 256;         // of a block
constexpr int kWarp = 32;             // threads that can add up without shared memory
constexpr int kLevels = 128;          // of a launch: they travel with its arguments, 4 KB in all
constexpr int64_t kBlocks = 1 << 30;  // of a launch; threads go on to further rows

struct Sizes {
  int64_t batch, tokens, heads, channels, queries, levels, points;
  const int64_t* shapes;
  const int64_t* starts;
};

struct Level {
  int64_t height, width, start;
};

// What a launch has to know: sizes, and the levels from `first` to `last` of all.
struct Task {
  int64_t tokens, heads, channels, queries, levels, points, rows;
  int64_t first, last;
  Level level[kLevels];
};

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T items[V];
};

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(double x, double& to) { to = x; }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

template <int V, typename T, typename A>
__device__ inline void load(const T* from, A (&to)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
  for (int v = 0; v < V; ++v) to[v] = widen(pack.items[v]);
}

template <int V, typename T, typename A>
__device__ inline void store(const A (&from)[V], T* to) {
  Pack<T, V> pack;
  for (int v = 0; v < V; ++v) narrow(from[v], pack.items[v]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Add to numbers that other threads add to as well.
template <int V, typename A>
__device__ inline void add(const A (&from)[V], A* to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (V % 4 == 0 && sizeof(A) == sizeof(float)) {
    for (int v = 0; v < V; v += 4)
      atomicAdd(reinterpret_cast<float4*>(to + v),
                make_float4(from[v], from[v + 1], from[v + 2], from[v + 3]));
  } else
#endif
    for (int v = 0; v < V; ++v) atomicAdd(to + v, from[v]);
}

// Where a place lies between the four pixels around it: up left, up right, down left, down right.
template <typename A>
struct Place {
  int64_t pixel;       // up left: row * width + column
  int64_t width;       // of the map
  A right, down;       // shares of the pixels to the right and below, 0 to 1
  bool rows[2], columns[2];  // that are inside of the map

  // Return whether any pixel is inside. False for what is no number.
  __device__ bool find(const A* location, const Level& level) {
    const A x = location[0] * A(level.width) - A(0.5);
    const A y = location[1] * A(level.height) - A(0.5);
    if (!(x >= A(-1) && x < A(level.width) && y >= A(-1) && y < A(level.height))) return false;
    const A column = floor(x), row = floor(y);
    const int64_t i = static_cast<int64_t>(row), j = static_cast<int64_t>(column);
    width = level.width;
    pixel = i * width + j;
    right = x - column;
    down = y - row;
    rows[0] = i >= 0;
    rows[1] = i + 1 < level.height;
    columns[0] = j >= 0;
    columns[1] = j + 1 < width;
    return true;
  }

  __device__ bool inside(int corner) const { return rows[corner >> 1] && columns[corner & 1]; }

  __device__ A share(int corner) const {
    return (corner >> 1 ? down : 1 - down) * (corner & 1 ? right : 1 - right);
  }

  __device__ int64_t at(int corner) const {
    return pixel + (corner >> 1 ? width : 0) + (corner & 1);
  }
};

// First number of a row's head in the first token of its sample.
__device__ inline int64_t head_of(const Task& task, int64_t row) {
  const int64_t sample = row / task.heads / task.queries;
  return (sample * task.tokens * task.heads + row % task.heads) * task.channels;
}

// A thread computes V channels of a row.
template <typename T, typename A, int V>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Task task, const T* __restrict__ value,
                   const A* __restrict__ locations, const A* __restrict__ weights,
                   T* __restrict__ output) {
  const int64_t packs = task.channels / V, stride = task.heads * task.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < task.rows * packs; i += step) {
    const int64_t row = i / packs, channel = i % packs * V;
    const T* head = value + head_of(task, row) + channel;
    A sums[V] = {};
    if (task.first > 0) load<V>(output + row * task.channels + channel, sums);
    int64_t sample = (row * task.levels + task.first) * task.points;
    for (int64_t l = 0; l < task.last - task.first; ++l) {
      const Level& level = task.level[l];
      for (int64_t point = 0; point < task.points; ++point, ++sample) {
        Place<A> place;
        if (!place.find(locations + 2 * sample, level)) continue;
        const A weight = weights[sample];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (!place.inside(corner)) continue;
          A numbers[V];
          load<V>(head + (level.start + place.at(corner)) * stride, numbers);
          const A share = weight * place.share(corner);
          for (int v = 0; v < V; ++v) sums[v] += share * numbers[v];
        }
      }
    }
    store<V>(sums, output + row * task.channels + channel);
  }
}

// `lanes` threads of one warp, a power of two, share a row: each takes V channels, then those that
// are lanes * V further on. The gradients of place and weight are sums over all of them.
template <typename T, typename A, int V>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Task task, int lanes,
                    const T* __restrict__ grad_output, const T* __restrict__ value,
                    const A* __restrict__ locations, const A* __restrict__ weights,
                    A* __restrict__ grad_value, A* __restrict__ grad_locations,
                    A* __restrict__ grad_weights) {
  const int64_t stride = task.heads * task.channels, at_once = blockDim.x / lanes;
  const int lane = threadIdx.x % lanes;
  // All threads of a warp go the same way, since they add up together.
  for (int64_t block = blockIdx.x * at_once; block < task.rows; block += gridDim.x * at_once) {
    const int64_t row = block + threadIdx.x / lanes;
    const bool active = row < task.rows;
    const int64_t head = active ? head_of(task, row) : 0;
    int64_t sample = (row * task.levels + task.first) * task.points;
    for (int64_t l = 0; l < task.last - task.first; ++l) {
      const Level& level = task.level[l];
      for (int64_t point = 0; point < task.points; ++point, ++sample) {
        Place<A> place;
        A grad_x = 0, grad_y = 0, grad_weight = 0;
        if (active && place.find(locations + 2 * sample, level)) {
          const A weight = weights[sample];
          A products[4] = {};  // of each corner's value and the gradient
          for (int64_t c = lane * V; c < task.channels; c += lanes * V) {
            A grad[V];
            load<V>(grad_output + row * task.channels + c, grad);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (!place.inside(corner)) continue;
              const int64_t pixel = head + (level.start + place.at(corner)) * stride + c;
              A numbers[V], parts[V];
              load<V>(value + pixel, numbers);
              const A share = weight * place.share(corner);
              for (int v = 0; v < V; ++v) {
                products[corner] += grad[v] * numbers[v];
                parts[v] = share * grad[v];
              }
              add<V>(parts, grad_value + pixel);
            }
          }
          const A above = products[1] - products[0], below = products[3] - products[2];
          const A top = products[0] + place.right * above;
          const A bottom = products[2] + place.right * below;
          grad_weight = top + place.down * (bottom - top);
          grad_x = weight * A(level.width) * (above + place.down * (below - above));
          grad_y = weight * A(level.height) * (bottom - top);
        }
        for (int other = lanes / 2; other > 0; other /= 2) {
          grad_x += __shfl_xor_sync(0xffffffffu, grad_x, other);
          grad_y += __shfl_xor_sync(0xffffffffu, grad_y, other);
          grad_weight += __shfl_xor_sync(0xffffffffu, grad_weight, other);
        }
        if (active && lane == 0) {
          grad_locations[2 * sample] = grad_x;
          grad_locations[2 * sample + 1] = grad_y;
          grad_weights[sample] = grad_weight;
        }
      }
    }
  }
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t threads, void* stream,
                   Arguments... arguments) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kBlocks ? blocks : kBlocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Call a function with a Task for each kLevels levels, at least once; its error ends it.
template <typename Function>
cudaError_t for_levels(const Sizes& sizes, Function function) {
  Task task = {sizes.tokens, sizes.heads,  sizes.channels,
               sizes.queries, sizes.levels, sizes.points,
               sizes.batch * sizes.queries * sizes.heads, 0, 0, {}};
  do {
    task.last = task.first + kLevels < sizes.levels ? task.first + kLevels : sizes.levels;
    for (int64_t l = task.first; l < task.last; ++l)
      task.level[l - task.first] = {sizes.shapes[2 * l], sizes.shapes[2 * l + 1], sizes.starts[l]};
    if (const cudaError_t error = function(task)) return error;
    task.first = task.last;
  } while (task.last < sizes.levels);
  return cudaSuccess;
}

// Whether rows of this many channels, from each of these addresses on, can be read 16 bytes at once.
template <typename T, typename... Pointers>
bool aligned(int64_t channels, Pointers... pointers) {
  return channels * sizeof(T) % 16 == 0 &&
         (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

template <typename T, typename A, int V>
cudaError_t forward(const Sizes& sizes, void* stream, const T* value, const A* locations,
                    const A* weights, T* output) {
  return for_levels(sizes, [&](const Task& task) {
    return launch(forward_kernel<T, A, V>, task.rows * (task.channels / V), stream, task, value,
                  locations, weights, output);
  });
}

template <typename T, typename A, int V>
cudaError_t backward(const Sizes& sizes, void* stream, const T* grad_output, const T* value,
                     const A* locations, const A* weights, A* grad_value, A* grad_locations,
                     A* grad_weights) {
  int lanes = 1;
  while (lanes < kWarp && lanes * V < sizes.channels) lanes *= 2;
  return for_levels(sizes, [&](const Task& task) {
    return launch(backward_kernel<T, A, V>, task.rows * lanes, stream, task, lanes, grad_output,
                  value, locations, weights, grad_value, grad_locations, grad_weights);
  });
}

const char* message(cudaError_t error) { return error ? cudaGetErrorString(error) : nullptr; }

}  // namespace

#define OVFORMER_EXPORT extern "C" __attribute__((visibility("default")))

// All functions return nullptr, or what went wrong.

// Whether a device can run what was compiled.
OVFORMER_EXPORT const char* ms_deform_attn_usable(int device) {
  if (const cudaError_t error = cudaSetDevice(device)) return message(error);
  cudaFuncAttributes attributes;
  return message(cudaFuncGetAttributes(&attributes, forward_kernel<float, float, 4>));
}

#define OVFORMER_MSDA(T, A, SUFFIX)                                                               \
  OVFORMER_EXPORT const char* ms_deform_attn_forward_##SUFFIX(                                    \
      const Sizes* sizes, int device, void* stream, const T* value, const A* locations,           \
      const A* weights, T* output) {                                                              \
    if (const cudaError_t error = cudaSetDevice(device)) return message(error);                   \
    constexpr int wide = 16 / sizeof(T);                                                          \
    const auto run =                                                                              \
        aligned<T>(sizes->channels, value, output) ? forward<T, A, wide> : forward<T, A, 1>;      \
    return message(run(*sizes, stream, value, locations, weights, output));                       \
  }                                                                                               \
  OVFORMER_EXPORT const char* ms_deform_attn_backward_##SUFFIX(                                   \
      const Sizes* sizes, int device, void* stream, const T* grad_output, const T* value,         \
      const A* locations, const A* weights, A* grad_value, A* grad_locations, A* grad_weights) {  \
    if (const cudaError_t error = cudaSetDevice(device)) return message(error);                   \
    constexpr int wide = 16 / sizeof(T);                                                          \
    const auto run = aligned<T>(sizes->channels, grad_output, value, grad_value)                  \
                         ? backward<T, A, wide>                                                   \
                         : backward<T, A, 1>;                                                     \
    return message(run(*sizes, stream, grad_output, value, locations, weights, grad_value,        \
                       grad_locations, grad_weights));                                            \
  }

OVFORMER_MSDA(float, float, float32)
OVFORMER_MSDA(double, double, float64)
OVFORMER_MSDA(__half, float, float16)
OVFORMER_MSDA(__nv_bfloat16, float, bfloat16)
