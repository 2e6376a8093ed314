// Finds: divergent warp
// Shuffles, votes and __syncwarp that some lanes of their mask do not reach, each with a correct twin.
#include <cuda_fp16.h>

constexpr unsigned kAll = 0xffffffffu;

// grid 1, block 32
extern "C" __global__ void bad_half_shuffles(float* out, const float* in, int* ints, int n) {
  float v = in[threadIdx.x];
  if (threadIdx.x < 16) v += __shfl_xor_sync(kAll, v, 1);
  out[threadIdx.x] = v;
}
// grid 1, block 32
extern "C" __global__ void good_half_shuffles(float* out, const float* in, int* ints, int n) {
  float v = in[threadIdx.x];
  if (threadIdx.x < 16) v += __shfl_xor_sync(0x0000ffffu, v, 1);
  out[threadIdx.x] = v;
}

// grid 1, block 32
extern "C" __global__ void bad_before_a_barrier(float* out, const float* in, int* ints, int n) {
  float v = in[threadIdx.x];
  if (threadIdx.x < 16) v = __shfl_down_sync(kAll, v, 8);
  __syncthreads();
  out[threadIdx.x] = v;
}
// grid 1, block 32
extern "C" __global__ void good_before_a_barrier(float* out, const float* in, int* ints, int n) {
  float v = __shfl_down_sync(kAll, in[threadIdx.x], 8);
  __syncthreads();
  out[threadIdx.x] = v;
}

// grid 1, block 32
extern "C" __global__ void bad_lane_returns(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x == 31) return;
  float sum = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
  out[threadIdx.x] = sum;
}
// grid 1, block 32
extern "C" __global__ void good_lane_returns(float* out, const float* in, int* ints, int n) {
  float sum = threadIdx.x == 31 ? 0.0f : in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
  if (threadIdx.x == 31) return;
  out[threadIdx.x] = sum;
}

// grid 1, block 64
extern "C" __global__ void bad_loop_per_lane(float* out, const float* in, int* ints, int n) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < 100; i += 64) sum += __shfl_xor_sync(kAll, in[i], 1);
  out[threadIdx.x] = sum;
}
// grid 1, block 64
extern "C" __global__ void good_loop_per_lane(float* out, const float* in, int* ints, int n) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i - threadIdx.x % 32 < 100; i += 64) {
    const float other = __shfl_xor_sync(kAll, i < 100 ? in[i] : 0.0f, 1);
    if (i < 100) sum += other;
  }
  out[threadIdx.x] = sum;
}

// grid 1, block 32
extern "C" __global__ void bad_own_lane_not_in_mask(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, in[threadIdx.x], 0);
}
// grid 1, block 32
extern "C" __global__ void good_own_lane_not_in_mask(float* out, const float* in, int* ints, int n) {
  const unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  out[threadIdx.x] = __shfl_sync(half, in[threadIdx.x], threadIdx.x & 16);
}

// grid 1, block 32
extern "C" __global__ void bad_source_outside_of_mask(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, in[threadIdx.x], threadIdx.x + 8);
}
// grid 1, block 32
extern "C" __global__ void good_source_outside_of_mask(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, in[threadIdx.x], (threadIdx.x + 8) % 16);
}

// grid 1, block 40
extern "C" __global__ void bad_lane_that_does_not_exist(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = __shfl_xor_sync(kAll, in[threadIdx.x], 16);
}
// grid 1, block 64
extern "C" __global__ void good_lane_that_does_not_exist(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = __shfl_xor_sync(kAll, in[threadIdx.x], 16);
}

// grid 1, block 32
extern "C" __global__ void bad_different_operations(float* out, const float* in, int* ints, int n) {
  unsigned votes = 0;
  if (threadIdx.x % 2)
    votes = __ballot_sync(kAll, 1);
  else
    votes = static_cast<unsigned>(__shfl_sync(kAll, in[threadIdx.x], 0));
  out[threadIdx.x] = static_cast<float>(votes);
}
// grid 1, block 32
extern "C" __global__ void good_different_operations(float* out, const float* in, int* ints, int n) {
  const unsigned votes = __ballot_sync(kAll, threadIdx.x % 2);
  out[threadIdx.x] = static_cast<float>(votes) + __shfl_sync(kAll, in[threadIdx.x], 0);
}

// grid 1, block 32
extern "C" __global__ void bad_different_places(float* out, const float* in, int* ints, int n) {
  float v = in[threadIdx.x];
  if (threadIdx.x < 16) {
    v += __shfl_xor_sync(kAll, v, 16);
  } else {
    v -= __shfl_xor_sync(kAll, v, 16);
  }
  out[threadIdx.x] = v;
}
// grid 1, block 32
extern "C" __global__ void good_different_places(float* out, const float* in, int* ints, int n) {
  const float v = in[threadIdx.x], other = __shfl_xor_sync(kAll, v, 16);
  out[threadIdx.x] = threadIdx.x < 16 ? v + other : v - other;
}

// grid 1, block 32
extern "C" __global__ void bad_syncwarp_in_a_branch(float* out, const float* in, int* ints, int n) {
  if (in[threadIdx.x] > 1.0f && threadIdx.x % 3 == 0) __syncwarp();
  out[threadIdx.x] = 0.0f;
}
// grid 1, block 32
extern "C" __global__ void good_syncwarp_in_a_branch(float* out, const float* in, int* ints, int n) {
  if (n > 1) __syncwarp();
  out[threadIdx.x] = 0.0f;
}

// grid 1, block 32
extern "C" __global__ void bad_vote_skipped(float* out, const float* in, int* ints, int n) {
  // The second vote is only made by lanes whose own element asks for it.
  bool any = __any_sync(kAll, in[threadIdx.x] > 1e9f);
  if (!any && threadIdx.x > 4) any = __all_sync(kAll, in[threadIdx.x] >= 0.0f);
  out[threadIdx.x] = any;
}
// grid 1, block 32
extern "C" __global__ void good_vote_skipped(float* out, const float* in, int* ints, int n) {
  bool any = __any_sync(kAll, in[threadIdx.x] > 1e9f);
  if (!any) any = __all_sync(kAll, in[threadIdx.x] >= 0.0f);
  out[threadIdx.x] = any;
}

// grid 1, block 32
extern "C" __global__ void bad_mask_of_another_branch(float* out, const float* in, int* ints, int n) {
  const unsigned even = __ballot_sync(kAll, threadIdx.x % 2 == 0);
  float v = in[threadIdx.x];
  if (threadIdx.x % 2 == 1) v = __shfl_sync(even, v, 0);
  out[threadIdx.x] = v;
}
// grid 1, block 32
extern "C" __global__ void good_mask_of_another_branch(float* out, const float* in, int* ints, int n) {
  const unsigned even = __ballot_sync(kAll, threadIdx.x % 2 == 0);
  float v = in[threadIdx.x];
  if (threadIdx.x % 2 == 0) v = __shfl_sync(even, v, 0);
  out[threadIdx.x] = v;
}

// grid 1, block 32
extern "C" __global__ void bad_mma_by_half_a_warp(float* out, const float* in, int* ints, int n) {
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const unsigned a = 0x3c003c00u;  // two halves of 1
  if (threadIdx.x < 16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a));
  out[threadIdx.x] = d[0];
}
// grid 1, block 32
extern "C" __global__ void good_mma_by_half_a_warp(float* out, const float* in, int* ints, int n) {
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const unsigned a = 0x3c003c00u;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a));
  out[threadIdx.x] = d[0];
}
