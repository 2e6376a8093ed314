// Finds: race
// Lanes of one warp that share memory with no __syncwarp between, each with a correct twin.

// grid 1, block 32
extern "C" __global__ void bad_reverse(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = s[31 - threadIdx.x];
}
// grid 1, block 32
extern "C" __global__ void good_reverse(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[31 - threadIdx.x];
}

// grid 1, block 32
extern "C" __global__ void bad_shuffle_is_no_fence(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = in[threadIdx.x];
  const float v = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);  // orders no memory
  out[threadIdx.x] = s[31 - threadIdx.x] + v;
}
// grid 1, block 32
extern "C" __global__ void good_shuffle_is_no_fence(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = in[threadIdx.x];
  const float v = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
  __syncwarp();
  out[threadIdx.x] = s[31 - threadIdx.x] + v;
}

// grid 1, block 32
extern "C" __global__ void bad_volatile_tree(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  volatile float* v = s;
  v[threadIdx.x] = in[threadIdx.x];
  v[threadIdx.x + 32] = 0.0f;
  for (int offset = 16; offset > 0; offset /= 2) v[threadIdx.x] += v[threadIdx.x + offset];  // lockstep of old cards
  out[threadIdx.x] = v[0];
}
// grid 1, block 32
extern "C" __global__ void good_volatile_tree(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  volatile float* v = s;
  v[threadIdx.x] = in[threadIdx.x];
  v[threadIdx.x + 32] = 0.0f;
  __syncwarp();
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = v[threadIdx.x + offset];
    __syncwarp();
    v[threadIdx.x] += other;
    __syncwarp();
  }
  out[threadIdx.x] = v[0];
}

// grid 1, block 32
extern "C" __global__ void bad_one_lane_writes(float* out, const float* in, int* ints, int n) {
  __shared__ float total;
  if (threadIdx.x == 0) total = in[0];
  out[threadIdx.x] = total;
}
// grid 1, block 32
extern "C" __global__ void good_one_lane_writes(float* out, const float* in, int* ints, int n) {
  __shared__ float total;
  if (threadIdx.x == 0) total = in[0];
  __syncwarp();
  out[threadIdx.x] = total;
}

// grid 1, block 32
extern "C" __global__ void bad_reuse(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  float sum = 0.0f;
  for (int t = 0; t < 4; t++) {
    s[threadIdx.x] = in[t * 32 + threadIdx.x];
    __syncwarp();
    sum += s[31 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
// grid 1, block 32
extern "C" __global__ void good_reuse(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  float sum = 0.0f;
  for (int t = 0; t < 4; t++) {
    s[threadIdx.x] = in[t * 32 + threadIdx.x];
    __syncwarp();
    sum += s[31 - threadIdx.x];
    __syncwarp();
  }
  out[threadIdx.x] = sum;
}

// grid 1, block 32
extern "C" __global__ void bad_mask_too_small(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
  out[threadIdx.x] = s[31 - threadIdx.x];  // of the other half
}
// grid 1, block 32
extern "C" __global__ void good_mask_too_small(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
  out[threadIdx.x] = s[threadIdx.x ^ 15];  // of the same half
}

// grid 1, block 64
extern "C" __global__ void bad_warp_only(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
// grid 1, block 64
extern "C" __global__ void good_warp_only(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 31];
}

// grid 1, block 32
extern "C" __global__ void bad_pairs(float* out, const float* in, int* ints, int n) {
  __shared__ float2 s[16];
  float* words = reinterpret_cast<float*>(s);
  words[threadIdx.x] = in[threadIdx.x];
  const float2 pair = s[threadIdx.x / 2];
  out[threadIdx.x] = pair.x + pair.y;
}
// grid 1, block 32
extern "C" __global__ void good_pairs(float* out, const float* in, int* ints, int n) {
  __shared__ float2 s[16];
  float* words = reinterpret_cast<float*>(s);
  words[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  const float2 pair = s[threadIdx.x / 2];
  out[threadIdx.x] = pair.x + pair.y;
}

// grid 1, block 32
extern "C" __global__ void bad_through_global(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x + 32] = out[(threadIdx.x + 1) % 32];
}
// grid 1, block 32
extern "C" __global__ void good_through_global(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x + 32] = out[(threadIdx.x + 1) % 32];
}

// grid 1, block 32
extern "C" __global__ void bad_vote_is_no_fence(float* out, const float* in, int* ints, int n) {
  __shared__ int found;
  if (threadIdx.x == 0) found = 0;
  if (__any_sync(0xffffffffu, in[threadIdx.x] > 1e9f)) out[0] = 1.0f;
  if (threadIdx.x == 7) found = 1;
  __syncwarp();
  out[threadIdx.x] = found;
}
// grid 1, block 32
extern "C" __global__ void good_vote_is_no_fence(float* out, const float* in, int* ints, int n) {
  __shared__ int found;
  if (threadIdx.x == 0) found = 0;
  __syncwarp();
  if (threadIdx.x == 7) found = 1;
  __syncwarp();
  out[threadIdx.x] = found;
}

// grid 1, block 32
extern "C" __global__ void bad_async_copy_of_others(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(&s[threadIdx.x]))),
               "l"(in + 4 * threadIdx.x));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");  // for the own copies only
  out[threadIdx.x] = s[31 - threadIdx.x].x;
}
// grid 1, block 32
extern "C" __global__ void good_async_copy_of_others(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(&s[threadIdx.x]))),
               "l"(in + 4 * threadIdx.x));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncwarp();
  out[threadIdx.x] = s[31 - threadIdx.x].x;
}

// grid 1, block 32
extern "C" __global__ void bad_matrix_load(float* out, const float* in, int* ints, int n) {
  __shared__ uint4 rows[8];
  reinterpret_cast<float*>(rows)[threadIdx.x] = in[threadIdx.x];
  unsigned a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(a)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(&rows[threadIdx.x % 8]))));
  out[threadIdx.x] = a;
}
// grid 1, block 32
extern "C" __global__ void good_matrix_load(float* out, const float* in, int* ints, int n) {
  __shared__ uint4 rows[8];
  reinterpret_cast<float*>(rows)[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  unsigned a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(a)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(&rows[threadIdx.x % 8]))));
  out[threadIdx.x] = a;
}
