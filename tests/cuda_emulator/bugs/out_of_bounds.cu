// Finds: out of bounds
// Accesses outside of arrays, each with a correct twin. out and in have 1024 floats, ints has 16.

// grid 4, block 256
extern "C" __global__ void bad_write_past_the_end(float* out, const float* in, int* ints, int n) {
  out[blockIdx.x * blockDim.x + threadIdx.x + 1] = 1.0f;
}
// grid 4, block 256
extern "C" __global__ void good_write_past_the_end(float* out, const float* in, int* ints, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x + 1;
  if (i < n) out[i] = 1.0f;
}

// grid 4, block 256
extern "C" __global__ void bad_read_past_the_end(float* out, const float* in, int* ints, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i] + in[i + 1];
}
// grid 4, block 256
extern "C" __global__ void good_read_past_the_end(float* out, const float* in, int* ints, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i] + (i + 1 < n ? in[i + 1] : 0.0f);
}

// grid 1, block 32
extern "C" __global__ void bad_negative_index(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x) - 1];
}
// grid 1, block 32
extern "C" __global__ void good_negative_index(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = threadIdx.x > 0 ? in[static_cast<int>(threadIdx.x) - 1] : 0.0f;
}

// grid 1, block 32
extern "C" __global__ void bad_vector_tail(float* out, const float* in, int* ints, int n) {
  const float4* vectors = reinterpret_cast<const float4*>(in);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < n / 4 + 1; i += 32) {
    const float4 v = vectors[i];
    sum += v.x + v.y + v.z + v.w;
  }
  out[threadIdx.x] = sum;
}
// grid 1, block 32
extern "C" __global__ void good_vector_tail(float* out, const float* in, int* ints, int n) {
  const float4* vectors = reinterpret_cast<const float4*>(in);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < n / 4; i += 32) {
    const float4 v = vectors[i];
    sum += v.x + v.y + v.z + v.w;
  }
  out[threadIdx.x] = sum;
}

// grid 1, block 33, shared 128
extern "C" __global__ void bad_dynamic_shared(float* out, const float* in, int* ints, int n) {
  extern __shared__ float buffer[];
  buffer[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = buffer[threadIdx.x];
}
// grid 1, block 33, shared 132
extern "C" __global__ void good_dynamic_shared(float* out, const float* in, int* ints, int n) {
  extern __shared__ float buffer[];
  buffer[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = buffer[threadIdx.x];
}

// grid 1, block 64
extern "C" __global__ void bad_static_shared(float* out, const float* in, int* ints, int n) {
  __shared__ float first[32];
  __shared__ float second[32];
  second[threadIdx.x % 32] = 0.0f;
  first[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = first[threadIdx.x % 32] + second[threadIdx.x % 32];
}
// grid 1, block 64
extern "C" __global__ void good_static_shared(float* out, const float* in, int* ints, int n) {
  __shared__ float first[64];
  __shared__ float second[64];
  second[threadIdx.x] = 0.0f;
  first[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = first[threadIdx.x % 32] + second[threadIdx.x % 32];
}

__device__ float sum_of(const float* values, int count) {
  float sum = 0.0f;
  for (int i = 0; i < count; i++) sum += values[i];
  return sum;
}

// grid 1, block 32
extern "C" __global__ void bad_shared_through_a_pointer(float* out, const float* in, int* ints, int n) {
  __shared__ float values[32];
  values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sum_of(values + 1, 32);
}
// grid 1, block 32
extern "C" __global__ void good_shared_through_a_pointer(float* out, const float* in, int* ints, int n) {
  __shared__ float values[32];
  values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sum_of(values + 1, 31);
}

// grid 1, block 32
extern "C" __global__ void bad_atomic(float* out, const float* in, int* ints, int n) {
  atomicAdd(&ints[threadIdx.x], 1);
}
// grid 1, block 32
extern "C" __global__ void good_atomic(float* out, const float* in, int* ints, int n) {
  atomicAdd(&ints[threadIdx.x % 16], 1);
}

// grid 1, block 32
extern "C" __global__ void bad_other_array(float* out, const float* in, int* ints, int n) {
  const long long distance = in - out;  // reaches in, but not through the pointer to it that it was given a size for
  out[threadIdx.x] = out[distance + n + threadIdx.x];
}
// grid 1, block 32
extern "C" __global__ void good_other_array(float* out, const float* in, int* ints, int n) {
  out[threadIdx.x] = in[n - 32 + threadIdx.x];
}

// grid 1, block 32
extern "C" __global__ void bad_overflow_of_int(float* out, const float* in, int* ints, int n) {
  const int stride = 1 << 30;
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x % 4) * stride / 64];
}
// grid 1, block 32
extern "C" __global__ void good_overflow_of_int(float* out, const float* in, int* ints, int n) {
  const int stride = 1 << 14;
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x % 4) * stride / 64];
}

// grid 1, block 32
extern "C" __global__ void bad_bytes(float* out, const float* in, int* ints, int n) {
  const signed char* codes = reinterpret_cast<const signed char*>(in);
  out[threadIdx.x] = codes[4 * n - 31 + threadIdx.x];
}
// grid 1, block 32
extern "C" __global__ void good_bytes(float* out, const float* in, int* ints, int n) {
  const signed char* codes = reinterpret_cast<const signed char*>(in);
  out[threadIdx.x] = codes[4 * n - 32 + threadIdx.x];
}

// grid 1, block 32
extern "C" __global__ void bad_prefetch(float* out, const float* in, int* ints, int n) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(in + n * (threadIdx.x + 1) / 32));
}
// grid 1, block 32
extern "C" __global__ void good_prefetch(float* out, const float* in, int* ints, int n) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(in + n * threadIdx.x / 32));
}

// grid 1, block 32
extern "C" __global__ void bad_local_array(float* out, const float* in, int* ints, int n) {
  float values[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  for (int i = 0; i < 4; i++) values[i + ints[0]] += in[threadIdx.x];
  out[threadIdx.x] = values[(threadIdx.x + ints[0]) % 5];
}
// grid 1, block 32
extern "C" __global__ void good_local_array(float* out, const float* in, int* ints, int n) {
  float values[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  for (int i = 0; i < 4; i++) values[i + ints[0]] += in[threadIdx.x];
  out[threadIdx.x] = values[(threadIdx.x + ints[0]) % 4];
}

// grid 1, block 32
extern "C" __global__ void bad_rows_of_shared(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[8][4];
  tile[threadIdx.x / 4][threadIdx.x % 4] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x / 4 + 1][threadIdx.x % 4];
}
// grid 1, block 32
extern "C" __global__ void good_rows_of_shared(float* out, const float* in, int* ints, int n) {
  __shared__ float tile[8][4];
  tile[threadIdx.x / 4][threadIdx.x % 4] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x / 4 + 1) % 8][threadIdx.x % 4];
}
