// Finds: divergent barrier
// Barriers that not all threads of a block reach, or not the same ones, each with a correct twin.

// grid 1, block 64
extern "C" __global__ void bad_half_of_the_threads(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}
// grid 1, block 64
extern "C" __global__ void good_half_of_the_threads(float* out, const float* in, int* ints, int n) {
  if (blockIdx.x == 0) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_early_return(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}
// grid 1, block 64
extern "C" __global__ void good_early_return(float* out, const float* in, int* ints, int n) {
  __syncthreads();
  if (threadIdx.x >= 40) return;
  out[threadIdx.x] = in[threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_two_branches(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
  } else {
    __syncthreads();
    out[threadIdx.x] = 0.0f;
  }
}
// grid 1, block 64
extern "C" __global__ void good_two_branches(float* out, const float* in, int* ints, int n) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x % 2 != 0) out[threadIdx.x] = 0.0f;
}

// grid 1, block 64
extern "C" __global__ void bad_loop_count(float* out, const float* in, int* ints, int n) {
  for (int i = threadIdx.x; i < 100; i += 64) {
    out[i] = in[i];
    __syncthreads();
  }
}
// grid 1, block 64
extern "C" __global__ void good_loop_count(float* out, const float* in, int* ints, int n) {
  for (int first = 0; first < 100; first += 64) {
    const int i = first + threadIdx.x;
    if (i < 100) out[i] = in[i];
    __syncthreads();
  }
}

// grid 1, block 64
extern "C" __global__ void bad_one_thread_leaves(float* out, const float* in, int* ints, int n) {
  __syncthreads();
  if (threadIdx.x == 63) return;
  out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
}
// grid 1, block 64
extern "C" __global__ void good_one_thread_leaves(float* out, const float* in, int* ints, int n) {
  __syncthreads();
  if (threadIdx.x != 63) out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
}

// grid 1, block 64
extern "C" __global__ void bad_break_out(float* out, const float* in, int* ints, int n) {
  for (int i = 0; i < 4; i++) {
    if (in[threadIdx.x] > 40.0f && i == 2) break;
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}
// grid 1, block 64
extern "C" __global__ void good_break_out(float* out, const float* in, int* ints, int n) {
  for (int i = 0; i < 4; i++) {
    if (__syncthreads_or(in[threadIdx.x] > 40.0f && i == 2)) break;
  }
  out[threadIdx.x] = 1.0f;
}

// grid 1, block 64
extern "C" __global__ void bad_vote_and_barrier(float* out, const float* in, int* ints, int n) {
  int any = 0;
  if (threadIdx.x < 32)
    any = __syncthreads_or(in[threadIdx.x] > 0.0f);
  else
    __syncthreads();
  out[threadIdx.x] = any;
}
// grid 1, block 64
extern "C" __global__ void good_vote_and_barrier(float* out, const float* in, int* ints, int n) {
  const int any = __syncthreads_or(threadIdx.x < 32 && in[threadIdx.x] > 0.0f);
  out[threadIdx.x] = any;
}

// grid 1, block 64
extern "C" __global__ void bad_barrier_against_shuffle(float* out, const float* in, int* ints, int n) {
  float v = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) __syncthreads();
  v = __shfl_xor_sync(0xffffffffu, v, 16);
  if (threadIdx.x % 32 >= 16) __syncthreads();
  out[threadIdx.x] = v;
}
// grid 1, block 64
extern "C" __global__ void good_barrier_against_shuffle(float* out, const float* in, int* ints, int n) {
  float v = in[threadIdx.x];
  __syncthreads();
  v = __shfl_xor_sync(0xffffffffu, v, 16);
  out[threadIdx.x] = v;
}

__device__ void barrier_inside(bool wanted) {
  if (wanted) __syncthreads();
}

// grid 2, block 96
extern "C" __global__ void bad_inside_a_function(float* out, const float* in, int* ints, int n) {
  barrier_inside(threadIdx.x / 32 != 2);
  out[blockIdx.x * 96 + threadIdx.x] = in[threadIdx.x];
}
// grid 2, block 96
extern "C" __global__ void good_inside_a_function(float* out, const float* in, int* ints, int n) {
  barrier_inside(blockIdx.x == 1);
  out[blockIdx.x * 96 + threadIdx.x] = in[threadIdx.x];
}

// grid 1, block 8 8
extern "C" __global__ void bad_two_dimensions(float* out, const float* in, int* ints, int n) {
  if (threadIdx.y > 0) __syncthreads();
  out[threadIdx.y * 8 + threadIdx.x] = in[threadIdx.x];
}
// grid 1, block 8 8
extern "C" __global__ void good_two_dimensions(float* out, const float* in, int* ints, int n) {
  __syncthreads();
  out[threadIdx.y * 8 + threadIdx.x] = in[threadIdx.x];
}

// grid 1, block 128
extern "C" __global__ void bad_one_warp_works_longer(float* out, const float* in, int* ints, int n) {
  __shared__ float sum;
  const int rounds = threadIdx.x < 32 ? 3 : 2;
  for (int i = 0; i < rounds; i++) {
    if (threadIdx.x == 0) sum = in[i];
    __syncthreads();
    out[threadIdx.x] = sum;
    __syncthreads();
  }
}
// grid 1, block 128
extern "C" __global__ void good_one_warp_works_longer(float* out, const float* in, int* ints, int n) {
  __shared__ float sum;
  for (int i = 0; i < 3; i++) {
    if (threadIdx.x == 0) sum = in[i];
    __syncthreads();
    out[threadIdx.x] = sum;
    __syncthreads();
  }
}

// grid 1, block 64
extern "C" __global__ void bad_count_differs(float* out, const float* in, int* ints, int n) {
  if (__syncthreads_count(in[threadIdx.x] > 0.0f) > 0 && threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}
// grid 1, block 64
extern "C" __global__ void good_count_differs(float* out, const float* in, int* ints, int n) {
  if (__syncthreads_count(in[threadIdx.x] > 0.0f) > 64) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}
