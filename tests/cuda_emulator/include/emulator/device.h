// Force-included in front of CUDA source, so that g++ compiles it for the emulator.
#pragma once
#include <math.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "interface.h"

#define PYLLAMA2_EMULATED 1
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
#define __grid_constant__
#ifdef EMULATOR_CHECKED
#define __shared__ static __attribute__((aligned(65536)))  // so far apart that none can be reached from another
#else
#define __shared__ static
#endif

// NVRTC does not have these.
#undef INFINITY
#undef NAN
#undef HUGE_VAL
#undef HUGE_VALF
#undef assert

#define threadIdx emulator_indices.thread
#define blockIdx emulator_indices.block
#define blockDim emulator_indices.block_size
#define gridDim emulator_indices.grid_size
constexpr int warpSize = 32;

// Dynamic shared memory. Its address as a 32-bit number, as PTX wants it, is the distance from here: the static arrays
// of a module lie less than 2 GiB away.
#define EMULATOR_MAX_DYNAMIC_SHARED (227 << 10)
extern "C" EMULATOR_EXPORT __attribute__((aligned(65536))) char emulator_dynamic_storage[EMULATOR_MAX_DYNAMIC_SHARED];
char emulator_dynamic_storage[EMULATOR_MAX_DYNAMIC_SHARED];

#include "vectors.h"
#include "warps.h"
#include "atomics.h"
#include "integers.h"
#include "floats.h"
#include "kernels.h"
#include "ptx.h"
