// Finds: race
// Threads of different warps that share memory with no barrier between, each with a correct twin.

// grid 1, block 64
extern "C" __global__ void bad_no_barrier(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = s[63 - threadIdx.x];
}
// grid 1, block 64
extern "C" __global__ void good_no_barrier(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_reuse(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float other = s[63 - threadIdx.x];
  s[threadIdx.x] = 2.0f * other;
  __syncthreads();
  out[threadIdx.x] = s[0] + other;
}
// grid 1, block 64
extern "C" __global__ void good_reuse(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float other = s[63 - threadIdx.x];
  __syncthreads();
  s[threadIdx.x] = 2.0f * other;
  __syncthreads();
  out[threadIdx.x] = s[0] + other;
}

// grid 1, block 128
extern "C" __global__ void bad_two_writers(float* out, const float* in, int* ints, int n) {
  __shared__ float total;
  if (threadIdx.x % 32 == 0) total = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = total;
}
// grid 1, block 128
extern "C" __global__ void good_two_writers(float* out, const float* in, int* ints, int n) {
  __shared__ float total;
  if (threadIdx.x == 0) total = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = total;
}

// grid 1, block 128
extern "C" __global__ void bad_tree(float* out, const float* in, int* ints, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (int half = 64; half > 0; half /= 2)
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
  if (threadIdx.x == 0) out[0] = s[0];
}
// grid 1, block 128
extern "C" __global__ void good_tree(float* out, const float* in, int* ints, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (int half = 64; half > 0; half /= 2) {
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[0] = s[0];
}

// grid 1, block 64
extern "C" __global__ void bad_loop_carried(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[64];
  float sum = 0.0f;
  for (int t = 0; t < 4; t++) {
    tile[threadIdx.x] = in[t * 64 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 64; i++) sum += tile[i];
  }
  out[threadIdx.x] = sum;
}
// grid 1, block 64
extern "C" __global__ void good_loop_carried(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[64];
  float sum = 0.0f;
  for (int t = 0; t < 4; t++) {
    tile[threadIdx.x] = in[t * 64 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 64; i++) sum += tile[i];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// grid 1, block 64
extern "C" __global__ void bad_double_buffer(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[2][64];
  float sum = 0.0f;
  tile[0][threadIdx.x] = in[threadIdx.x];
  for (int t = 0; t < 4; t++) {
    tile[t % 2 ^ 1][threadIdx.x] = in[(t + 1) * 64 + threadIdx.x];
    sum += tile[t % 2][63 - threadIdx.x];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}
// grid 1, block 64
extern "C" __global__ void good_double_buffer(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[2][64];
  float sum = 0.0f;
  tile[0][threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (int t = 0; t < 4; t++) {
    tile[t % 2 ^ 1][threadIdx.x] = in[(t + 1) * 64 + threadIdx.x];
    sum += tile[t % 2][63 - threadIdx.x];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// grid 1, block 64, shared 256
extern "C" __global__ void bad_dynamic(float* out, const float* in, int* ints, int n) {
  extern __shared__ float s[];
  s[threadIdx.x ^ 32] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x];
}
// grid 1, block 64, shared 256
extern "C" __global__ void good_dynamic(float* out, const float* in, int* ints, int n) {
  extern __shared__ float s[];
  s[threadIdx.x ^ 32] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_plain_counter(float* out, const float* in, int* ints, int n) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  if (in[threadIdx.x] >= 0.0f) counter++;
  __syncthreads();
  out[threadIdx.x] = counter;
}
// grid 1, block 64
extern "C" __global__ void good_plain_counter(float* out, const float* in, int* ints, int n) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  if (in[threadIdx.x] >= 0.0f) atomicAdd(&counter, 1);
  __syncthreads();
  out[threadIdx.x] = counter;
}

// grid 1, block 64
extern "C" __global__ void bad_atomic_before_reset(float* out, const float* in, int* ints, int n) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  atomicAdd(&counter, 1);
  __syncthreads();
  out[threadIdx.x] = counter;
}
// grid 1, block 64
extern "C" __global__ void good_atomic_before_reset(float* out, const float* in, int* ints, int n) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1);
  __syncthreads();
  out[threadIdx.x] = counter;
}

// grid 1, block 64
extern "C" __global__ void bad_overlapping_bytes(float* out, const float* in, int* ints, int n) {
  __shared__ signed char codes[66];
  codes[threadIdx.x] = static_cast<signed char>(threadIdx.x);
  codes[threadIdx.x + 2] = 1;
  __syncthreads();
  out[threadIdx.x] = codes[threadIdx.x];
}
// grid 1, block 64
extern "C" __global__ void good_overlapping_bytes(float* out, const float* in, int* ints, int n) {
  __shared__ signed char codes[66];
  codes[threadIdx.x] = static_cast<signed char>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x < 2) codes[threadIdx.x + 64] = 1;
  __syncthreads();
  out[threadIdx.x] = codes[threadIdx.x + 2];
}

// grid 1, block 64
extern "C" __global__ void bad_vector_over_scalars(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[16];
  float* scalars = reinterpret_cast<float*>(s);
  scalars[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  const float4 v = s[15 - threadIdx.x / 4];
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
// grid 1, block 64
extern "C" __global__ void good_vector_over_scalars(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[16];
  float* scalars = reinterpret_cast<float*>(s);
  scalars[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float4 v = s[15 - threadIdx.x / 4];
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// grid 1, block 96
extern "C" __global__ void bad_sum_of_warps(float* out, const float* in, int* ints, int n) {
  __shared__ float sums[3];
  float sum = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  if (threadIdx.x == 0) out[0] = sums[0] + sums[1] + sums[2];
}
// grid 1, block 96
extern "C" __global__ void good_sum_of_warps(float* out, const float* in, int* ints, int n) {
  __shared__ float sums[3];
  float sum = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = sums[0] + sums[1] + sums[2];
}

// grid 1, block 96
extern "C" __global__ void bad_async_copy_over_what_is_read(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[96];
  s[threadIdx.x] = reinterpret_cast<const float4*>(in)[threadIdx.x];
  __syncthreads();
  const float before = s[95 - threadIdx.x].x;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(&s[threadIdx.x]))),
               "l"(in + 4 * threadIdx.x + 512));
  asm volatile("cp.async.commit_group;");
  __syncthreads();
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  out[threadIdx.x] = before + s[95 - threadIdx.x].x;
}
// grid 1, block 96
extern "C" __global__ void good_async_copy_over_what_is_read(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[96];
  s[threadIdx.x] = reinterpret_cast<const float4*>(in)[threadIdx.x];
  __syncthreads();
  const float before = s[95 - threadIdx.x].x;
  __syncthreads();
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(&s[threadIdx.x]))),
               "l"(in + 4 * threadIdx.x + 512));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  out[threadIdx.x] = before + s[95 - threadIdx.x].x;
}
