// Finds: uninitialised
// Reads of memory that nobody wrote, each with a correct twin. Only the first 10 of ints are written.

// grid 1, block 32
extern "C" __global__ void bad_half_written(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x] + 0.0f * s[threadIdx.x + 32];
}
// grid 1, block 32
extern "C" __global__ void good_half_written(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  s[threadIdx.x + 32] = 0.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x] + 0.0f * s[threadIdx.x + 32];
}

// grid 1, block 64
extern "C" __global__ void bad_accumulates_into_nothing(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] += in[threadIdx.x];
  out[threadIdx.x] = s[threadIdx.x];
}
// grid 1, block 64
extern "C" __global__ void good_accumulates_into_nothing(float* out, const float* in, int* ints, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = 0.0f;
  s[threadIdx.x] += in[threadIdx.x];
  out[threadIdx.x] = s[threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_counter_not_reset(float* out, const float* in, int* ints, int n) {
  __shared__ int counter;
  atomicAdd(&counter, 1);
  __syncthreads();
  out[threadIdx.x] = counter;
}
// grid 1, block 64
extern "C" __global__ void good_counter_not_reset(float* out, const float* in, int* ints, int n) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1);
  __syncthreads();
  out[threadIdx.x] = counter;
}

// grid 3, block 32
extern "C" __global__ void bad_left_by_another_block(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  if (blockIdx.x == 1) s[threadIdx.x] = in[threadIdx.x];
  out[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}
// grid 3, block 32
extern "C" __global__ void good_left_by_another_block(float* out, const float* in, int* ints, int n) {
  __shared__ float s[32];
  s[threadIdx.x] = blockIdx.x == 1 ? in[threadIdx.x] : 0.0f;
  out[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_fewer_warps_than_sums(float* out, const float* in, int* ints, int n) {
  __shared__ float sums[8];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = in[threadIdx.x];
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < 8; i++) total += sums[i];
  out[threadIdx.x] = total;
}
// grid 1, block 64
extern "C" __global__ void good_fewer_warps_than_sums(float* out, const float* in, int* ints, int n) {
  __shared__ float sums[8];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = in[threadIdx.x];
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; i++) total += sums[i];
  out[threadIdx.x] = total;
}

// grid 1, block 32, shared 512
extern "C" __global__ void bad_dynamic_padding(float* out, const float* in, int* ints, int n) {
  extern __shared__ float4 tile[];
  if (threadIdx.x < 20) tile[threadIdx.x] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
  __syncthreads();
  const float4 v = tile[threadIdx.x];
  out[threadIdx.x] = v.x;
}
// grid 1, block 32, shared 512
extern "C" __global__ void good_dynamic_padding(float* out, const float* in, int* ints, int n) {
  extern __shared__ float4 tile[];
  tile[threadIdx.x] = threadIdx.x < 20 ? make_float4(1.0f, 1.0f, 1.0f, 1.0f) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  __syncthreads();
  const float4 v = tile[threadIdx.x];
  out[threadIdx.x] = v.x;
}

// grid 1, block 8
extern "C" __global__ void bad_global_word(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = ints[8 + threadIdx.x];
}
// grid 1, block 8
extern "C" __global__ void good_global_word(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = ints[threadIdx.x];
}

// grid 1, block 8
extern "C" __global__ void bad_global_counter(float* out, const float* in, int* ints, int n) {
  atomicAdd(&ints[8 + threadIdx.x], 1);
}
// grid 1, block 8
extern "C" __global__ void good_global_counter(float* out, const float* in, int* ints, int n) {
  ints[8 + threadIdx.x] = 0;
  atomicAdd(&ints[8 + threadIdx.x], 1);
}

// grid 1, block 1
extern "C" __global__ void bad_vector_of_which_half_is_written(float* out, const float* in, int* ints, int n) {
  const int4 v = *reinterpret_cast<const int4*>(ints + 8);
  out[0] = v.x;
}
// grid 1, block 1
extern "C" __global__ void good_vector_of_which_half_is_written(float* out, const float* in, int* ints, int n) {
  const int4 v = *reinterpret_cast<const int4*>(ints + 4);
  out[0] = v.x;
}

// grid 1, block 32
extern "C" __global__ void bad_copy_not_waited_for(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(&s[threadIdx.x]))),
               "l"(in + 4 * threadIdx.x));
  asm volatile("cp.async.commit_group;");
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x].x;
  asm volatile("cp.async.wait_group 0;");
}
// grid 1, block 32
extern "C" __global__ void good_copy_not_waited_for(float* out, const float* in, int* ints, int n) {
  __shared__ float4 s[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(&s[threadIdx.x]))),
               "l"(in + 4 * threadIdx.x));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x].x;
}

// grid 1, block 32
extern "C" __global__ void bad_column_never_filled(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[32][33];
  for (int i = 0; i < 31; i++) tile[i][threadIdx.x] = in[i * 32 + threadIdx.x];
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < 32; i++) sum += tile[i][threadIdx.x];
  out[threadIdx.x] = sum;
}
// grid 1, block 32
extern "C" __global__ void good_column_never_filled(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[32][33];
  for (int i = 0; i < 32; i++) tile[i][threadIdx.x] = in[i * 32 + threadIdx.x];
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < 32; i++) sum += tile[i][threadIdx.x];
  out[threadIdx.x] = sum;
}

// grid 1, block 32
extern "C" __global__ void bad_bytes_of_a_word(float* out, const float* in, int* ints, int n) {
  __shared__ int words[32];
  signed char* bytes = reinterpret_cast<signed char*>(words);
  for (int i = 0; i < 3; i++) bytes[4 * threadIdx.x + i] = 1;
  out[threadIdx.x] = words[threadIdx.x];
}
// grid 1, block 32
extern "C" __global__ void good_bytes_of_a_word(float* out, const float* in, int* ints, int n) {
  __shared__ int words[32];
  signed char* bytes = reinterpret_cast<signed char*>(words);
  for (int i = 0; i < 4; i++) bytes[4 * threadIdx.x + i] = 1;
  out[threadIdx.x] = words[threadIdx.x];
}
