// As much of CUDA's runtime as the kernels here use, on the CPU: `g++ -x c++ -I<this folder>` makes
// a library of a .cu file, whose functions take the CPU's memory. Tests run the very same source so.
//
// A warp's threads are fibres that run in turns: each until its next exchange with the others.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1) : x(x), y(1), z(1) {}
};

typedef int cudaError_t;
typedef struct Stream* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidConfiguration = 9;
constexpr cudaError_t cudaErrorInvalidDevice = 101, cudaErrorInvalidResourceHandle = 400;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

struct cudaFuncAttributes {};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid resource handle";
}

// There is one device, 0, with one stream, nullptr.
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : 0; }

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}

inline thread_local dim3 gridDim, blockDim, blockIdx(0), threadIdx(0);

namespace host {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

// A warp in the midst of running; lanes take turns in their order.
struct Warp {
  ucontext_t caller, lanes[kWarp];
  std::vector<char> stacks = std::vector<char>(kWarp * kStack);
  std::function<void()> body;
  double given[2][kWarp];  // what a lane holds out to the others, in two rounds that take turns
  int rounds[kWarp];
  bool ended[kWarp];
  int lane;

  void pause() { swapcontext(&lanes[lane], &caller); }

  static void enter();

  void run(unsigned first) {
    for (lane = 0; lane < kWarp; ++lane) {
      getcontext(&lanes[lane]);
      lanes[lane].uc_stack.ss_sp = stacks.data() + lane * kStack;
      lanes[lane].uc_stack.ss_size = kStack;
      lanes[lane].uc_link = &caller;
      makecontext(&lanes[lane], enter, 0);
      ended[lane] = false;
      rounds[lane] = 0;
    }
    while (std::count(ended, ended + kWarp, true) < kWarp) {
      for (lane = 0; lane < kWarp; ++lane) {
        threadIdx.x = first + lane;
        if (!ended[lane]) swapcontext(&caller, &lanes[lane]);
      }
    }
  }
};

inline thread_local Warp* warp;

inline void Warp::enter() {
  warp->body();
  warp->ended[warp->lane] = true;
}

}  // namespace host

template <typename T>
T __shfl_xor_sync(unsigned, T given, int other) {
  host::Warp& warp = *host::warp;
  const int lane = warp.lane, round = warp.rounds[lane]++;
  warp.given[round % 2][lane] = given;
  warp.pause();
  // A thread that left or is elsewhere would give what no GPU promises.
  if (warp.rounds[lane ^ other] <= round) __builtin_trap();
  return static_cast<T>(warp.given[round % 2][lane ^ other]);
}

template <typename T>
void atomicAdd(T* to, T given) {
  *to += given;
}

struct float4 {
  float items[4];
};

inline float4 make_float4(float a, float b, float c, float d) { return {{a, b, c, d}}; }

inline void atomicAdd(float4* to, float4 given) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(float4)) __builtin_trap();
  for (int i = 0; i < 4; ++i) to->items[i] += given.items[i];
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  if (config->stream) return cudaErrorInvalidResourceHandle;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  if (!gridDim.x || !blockDim.x || blockDim.x % host::kWarp) return cudaErrorInvalidConfiguration;
  host::Warp warp;
  warp.body = [&] { kernel(arguments...); };
  host::warp = &warp;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (unsigned first = 0; first < blockDim.x; first += host::kWarp) warp.run(first);
  return cudaSuccess;
}
