// Finds: race
// Threads and blocks that share global memory without being ordered, each with a correct twin.

// grid 1, block 64
extern "C" __global__ void bad_within_a_block(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x + 64] = out[63 - threadIdx.x];
}
// grid 1, block 64
extern "C" __global__ void good_within_a_block(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x + 64] = out[63 - threadIdx.x];
}

// grid 8, block 32
extern "C" __global__ void bad_sum_of_blocks(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x == 0) out[0] += in[blockIdx.x];
}
// grid 8, block 32
extern "C" __global__ void good_sum_of_blocks(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x == 0) out[blockIdx.x] += in[blockIdx.x];
}

// grid 4, block 32
extern "C" __global__ void bad_overlap(float* out, const float* in, int* ints, int n) {
  out[blockIdx.x * 31 + threadIdx.x] = in[threadIdx.x];
}
// grid 4, block 32
extern "C" __global__ void good_overlap(float* out, const float* in, int* ints, int n) {
  out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
}

// grid 4, block 32
extern "C" __global__ void bad_in_place(float* out, const float* in, int* ints, int n) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  out[i] = out[(i + 1) % 128] + 1.0f;
}
// grid 4, block 32
extern "C" __global__ void good_in_place(float* out, const float* in, int* ints, int n) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  out[i] = out[i] + 1.0f;
}

// grid 4, block 32
extern "C" __global__ void bad_plain_count(float* out, const float* in, int* ints, int n) {
  if (in[blockIdx.x] >= 0.0f) ints[threadIdx.x % 4]++;
}
// grid 4, block 32
extern "C" __global__ void good_plain_count(float* out, const float* in, int* ints, int n) {
  if (in[blockIdx.x] >= 0.0f) atomicAdd(&ints[threadIdx.x % 4], 1);
}

// grid 4, block 32
extern "C" __global__ void bad_atomic_and_store(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x == 0) ints[0] = 0;
  __syncthreads();
  atomicAdd(&ints[0], 1);
}
// grid 4, block 32
extern "C" __global__ void good_atomic_and_store(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x == 0) ints[blockIdx.x] = 0;
  __syncthreads();
  atomicAdd(&ints[blockIdx.x], 1);
}

// The last block to finish adds up what all blocks wrote. `kFence` and the others say which part is there.
template <bool kFence, bool kBarrier, bool kAcquire, bool kReset>
__device__ void last_block_sums(float* out, const float* in, int* ints) {
  __shared__ bool last;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (kFence) __threadfence();
    last = atomicAdd(&ints[0], 1) == static_cast<int>(gridDim.x) - 1;
    if (kAcquire) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  float sum = 0.0f;
  for (int block = 0; block < static_cast<int>(gridDim.x); block++) sum += out[block * blockDim.x + threadIdx.x];
  out[gridDim.x * blockDim.x + threadIdx.x] = sum;
  if (kReset && threadIdx.x == 0) ints[0] = 0;
}

// grid 4, block 64
extern "C" __global__ void bad_last_block_without_fence(float* out, const float* in, int* ints, int n) {
  last_block_sums<false, true, true, true>(out, in, ints);
}
// grid 4, block 64
extern "C" __global__ void good_last_block_without_fence(float* out, const float* in, int* ints, int n) {
  last_block_sums<true, true, true, true>(out, in, ints);
}

// grid 4, block 64
extern "C" __global__ void bad_last_block_without_barrier(float* out, const float* in, int* ints, int n) {
  last_block_sums<true, false, true, false>(out, in, ints);
}
// grid 4, block 64
extern "C" __global__ void good_last_block_without_barrier(float* out, const float* in, int* ints, int n) {
  last_block_sums<true, true, true, false>(out, in, ints);
}

// grid 4, block 64
extern "C" __global__ void bad_last_block_reads_old_lines(float* out, const float* in, int* ints, int n) {
  last_block_sums<true, true, false, false>(out, in, ints);
}
// Every thread makes its own writes visible, and the last block reads past L1: correct as well.
// grid 4, block 64
extern "C" __global__ void good_last_block_reads_old_lines(float* out, const float* in, int* ints, int n) {
  __shared__ bool last;
  out[blockIdx.x * 64 + threadIdx.x] = in[threadIdx.x];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&ints[0], 1) == 3;
  __syncthreads();
  if (!last) return;
  float sum = 0.0f;
  for (int block = 0; block < 4; block++) sum += __ldcg(&out[block * 64 + threadIdx.x]);
  out[256 + threadIdx.x] = sum;
}

// grid 4, block 64
extern "C" __global__ void bad_fence_too_early(float* out, const float* in, int* ints, int n) {
  __shared__ bool last;
  __threadfence();
  out[blockIdx.x * 64 + threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&ints[0], 1) == 3;
  __syncthreads();
  if (last) out[256 + threadIdx.x] = __ldcg(&out[threadIdx.x]) + __ldcg(&out[192 + threadIdx.x]);
}
// Warps on their own: lanes meet at __syncwarp, the first of them publishes, the last warp takes over.
// grid 4, block 64
extern "C" __global__ void good_fence_too_early(float* out, const float* in, int* ints, int n) {
  const int lane = threadIdx.x % 32, warp = blockIdx.x * 2 + threadIdx.x / 32;
  out[warp * 32 + lane] = in[lane];
  __syncwarp();
  int ticket = 0;
  if (lane == 0) {
    __threadfence();
    ticket = atomicAdd(&ints[0], 1);
    __threadfence();
  }
  ticket = __shfl_sync(0xffffffffu, ticket, 0);
  __syncwarp();
  if (ticket == 7) out[256 + lane] = out[lane] + out[224 + lane];
}

// grid 4, block 32
extern "C" __global__ void bad_wrong_counter(float* out, const float* in, int* ints, int n) {
  out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const int ticket = atomicAdd(&ints[blockIdx.x % 2], 1);  // two halves that do not know of each other
    __threadfence();
    if (ticket == 1) out[128 + blockIdx.x % 2] = out[0] + out[32] + out[64] + out[96];
  }
}
// grid 4, block 32
extern "C" __global__ void good_wrong_counter(float* out, const float* in, int* ints, int n) {
  out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const int ticket = atomicAdd(&ints[blockIdx.x % 2], 1);
    __threadfence();
    const int half = blockIdx.x % 2;
    if (ticket == 1) out[128 + half] = out[32 * half] + out[32 * half + 64];
  }
}

// grid 4, block 32
extern "C" __global__ void bad_read_only_path(float* out, const float* in, int* ints, int n) {
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
  if (blockIdx.x == 3) out[32 + threadIdx.x] = __ldg(&out[threadIdx.x]);
}
// grid 4, block 32
extern "C" __global__ void good_read_only_path(float* out, const float* in, int* ints, int n) {
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
  if (blockIdx.x == 3) out[32 + threadIdx.x] = __ldg(&in[threadIdx.x]);
}

// grid 2, block 32
extern "C" __global__ void bad_neighbouring_bytes(float* out, const float* in, int* ints, int n) {
  unsigned char* packed = reinterpret_cast<unsigned char*>(out);  // two codes of 4 bits a byte, a thread each
  const int i = blockIdx.x * 32 + threadIdx.x;
  packed[i / 2] |= (i % 2 ? 0x30 : 0x03);
}
// grid 2, block 32
extern "C" __global__ void good_neighbouring_bytes(float* out, const float* in, int* ints, int n) {
  unsigned char* packed = reinterpret_cast<unsigned char*>(out);
  packed[blockIdx.x * 32 + threadIdx.x] = 0x33;
}

// The example of the CUDA guide: results are volatile, so that reads pass by L1 and need no second fence.
// grid 4, block 32
extern "C" __global__ void bad_volatile_result(float* out, const float* in, int* ints, int n) {
  volatile float* result = out;
  if (threadIdx.x != 0) return;
  result[blockIdx.x] = in[blockIdx.x];
  if (atomicAdd(&ints[0], 1) == 3) result[4] = result[0] + result[1] + result[2] + result[3];
}
// grid 4, block 32
extern "C" __global__ void good_volatile_result(float* out, const float* in, int* ints, int n) {
  volatile float* result = out;
  if (threadIdx.x != 0) return;
  result[blockIdx.x] = in[blockIdx.x];
  __threadfence();
  if (atomicAdd(&ints[0], 1) == 3) result[4] = result[0] + result[1] + result[2] + result[3];
}

// grid 4, block 32
extern "C" __global__ void bad_fence_of_the_block(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = in[blockIdx.x];
  __threadfence_block();  // says nothing to other blocks
  if (atomicAdd(&ints[0], 1) == 3) out[4] = __ldcg(&out[0]) + __ldcg(&out[1]) + __ldcg(&out[2]) + __ldcg(&out[3]);
}
// grid 4, block 32
extern "C" __global__ void good_fence_of_the_block(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = in[blockIdx.x];
  __threadfence();
  if (atomicAdd(&ints[0], 1) == 3) out[4] = __ldcg(&out[0]) + __ldcg(&out[1]) + __ldcg(&out[2]) + __ldcg(&out[3]);
}

// grid 1, block 32
extern "C" __global__ void bad_read_only_after_own_write(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  out[32 + threadIdx.x] = __ldg(&out[threadIdx.x]);  // may be served from a cache that does not see writes
}
// grid 1, block 32
extern "C" __global__ void good_read_only_after_own_write(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  out[32 + threadIdx.x] = out[threadIdx.x];
}
