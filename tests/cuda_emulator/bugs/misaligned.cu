// Finds: misaligned
// Vector accesses at addresses that are no multiple of their size, each with a correct twin.
#include <cuda_fp16.h>

// grid 1, block 8
extern "C" __global__ void bad_float4_load(float* out, const float* in, int* ints, int n) {
  const float4 v = reinterpret_cast<const float4*>(in + 1)[threadIdx.x];
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
// grid 1, block 8
extern "C" __global__ void good_float4_load(float* out, const float* in, int* ints, int n) {
  const float4 v = reinterpret_cast<const float4*>(in + 4)[threadIdx.x];
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// grid 1, block 8
extern "C" __global__ void bad_float4_store(float* out, const float* in, int* ints, int n) {
  reinterpret_cast<float4*>(out + 2)[threadIdx.x] = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
}
// grid 1, block 8
extern "C" __global__ void good_float4_store(float* out, const float* in, int* ints, int n) {
  reinterpret_cast<float4*>(out + 8)[threadIdx.x] = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
}

// grid 1, block 8
extern "C" __global__ void bad_float2_load(float* out, const float* in, int* ints, int n) {
  const float2 v = *reinterpret_cast<const float2*>(in + 3 * threadIdx.x);
  out[threadIdx.x] = v.x + v.y;
}
// grid 1, block 8
extern "C" __global__ void good_float2_load(float* out, const float* in, int* ints, int n) {
  const float2 v = *reinterpret_cast<const float2*>(in + 4 * threadIdx.x);
  out[threadIdx.x] = v.x + v.y;
}

// grid 1, block 8
extern "C" __global__ void bad_int_of_bytes(float* out, const float* in, int* ints, int n) {
  const signed char* codes = reinterpret_cast<const signed char*>(in);
  out[threadIdx.x] = *reinterpret_cast<const int*>(codes + 6 * threadIdx.x);
}
// grid 1, block 8
extern "C" __global__ void good_int_of_bytes(float* out, const float* in, int* ints, int n) {
  const signed char* codes = reinterpret_cast<const signed char*>(in);
  out[threadIdx.x] = *reinterpret_cast<const int*>(codes + 8 * threadIdx.x);
}

// grid 1, block 8
extern "C" __global__ void bad_half_of_bytes(float* out, const float* in, int* ints, int n) {
  const char* bytes = reinterpret_cast<const char*>(in);
  out[threadIdx.x] = __half2float(*reinterpret_cast<const __half*>(bytes + 3 * threadIdx.x));
}
// grid 1, block 8
extern "C" __global__ void good_half_of_bytes(float* out, const float* in, int* ints, int n) {
  const char* bytes = reinterpret_cast<const char*>(in);
  out[threadIdx.x] = __half2float(*reinterpret_cast<const __half*>(bytes + 2 * threadIdx.x));
}

// grid 1, block 8
extern "C" __global__ void bad_half2_of_halves(float* out, const float* in, int* ints, int n) {
  const __half* halves = reinterpret_cast<const __half*>(in);
  out[threadIdx.x] = __low2float(*reinterpret_cast<const __half2*>(halves + threadIdx.x));
}
// grid 1, block 8
extern "C" __global__ void good_half2_of_halves(float* out, const float* in, int* ints, int n) {
  const __half* halves = reinterpret_cast<const __half*>(in);
  out[threadIdx.x] = __low2float(*reinterpret_cast<const __half2*>(halves + 2 * threadIdx.x));
}

// grid 1, block 8, shared 256
extern "C" __global__ void bad_shared_vector(float* out, const float* in, int* ints, int n) {
  extern __shared__ float buffer[];
  for (int i = threadIdx.x; i < 64; i += 8) buffer[i] = in[i];
  __syncthreads();
  const float4 v = *reinterpret_cast<const float4*>(buffer + 5 * threadIdx.x);
  out[threadIdx.x] = v.x + v.w;
}
// grid 1, block 8, shared 256
extern "C" __global__ void good_shared_vector(float* out, const float* in, int* ints, int n) {
  extern __shared__ float buffer[];
  for (int i = threadIdx.x; i < 64; i += 8) buffer[i] = in[i];
  __syncthreads();
  const float4 v = *reinterpret_cast<const float4*>(buffer + 4 * threadIdx.x);
  out[threadIdx.x] = v.x + v.w;
}

// grid 1, block 8, shared 200
extern "C" __global__ void bad_second_shared_array(float* out, const float* in, int* ints, int n) {
  extern __shared__ char bytes[];
  float2* pairs = reinterpret_cast<float2*>(bytes + 4 * 9);  // behind an odd number of floats
  pairs[threadIdx.x] = make_float2(in[threadIdx.x], 1.0f);
  out[threadIdx.x] = pairs[threadIdx.x].x;
}
// grid 1, block 8, shared 200
extern "C" __global__ void good_second_shared_array(float* out, const float* in, int* ints, int n) {
  extern __shared__ char bytes[];
  float2* pairs = reinterpret_cast<float2*>(bytes + 4 * 10);
  pairs[threadIdx.x] = make_float2(in[threadIdx.x], 1.0f);
  out[threadIdx.x] = pairs[threadIdx.x].x;
}

// grid 1, block 8
extern "C" __global__ void bad_atomic_word(float* out, const float* in, int* ints, int n) {
  atomicAdd(reinterpret_cast<int*>(reinterpret_cast<char*>(ints) + 2), 1);
}
// grid 1, block 8
extern "C" __global__ void good_atomic_word(float* out, const float* in, int* ints, int n) {
  atomicAdd(reinterpret_cast<int*>(reinterpret_cast<char*>(ints) + 4), 1);
}

// grid 1, block 8
extern "C" __global__ void bad_row_stride(float* out, const float* in, int* ints, int n) {
  const int stride = 172 / 4 * 4 + 2;  // floats in a row: no multiple of 4
  const uint4 v = *reinterpret_cast<const uint4*>(in + (threadIdx.x % 4) * stride);
  out[threadIdx.x] = v.x;
}
// grid 1, block 8
extern "C" __global__ void good_row_stride(float* out, const float* in, int* ints, int n) {
  const int stride = 172 / 4 * 4;
  const uint4 v = *reinterpret_cast<const uint4*>(in + (threadIdx.x % 4) * stride);
  out[threadIdx.x] = v.x;
}

// grid 1, block 8
extern "C" __global__ void bad_int2_store(float* out, const float* in, int* ints, int n) {
  reinterpret_cast<int2*>(ints + 1)[threadIdx.x % 4] = make_int2(1, 2);
}
// grid 1, block 4
extern "C" __global__ void good_int2_store(float* out, const float* in, int* ints, int n) {
  reinterpret_cast<int2*>(ints)[threadIdx.x] = make_int2(1, 2);
}

// grid 1, block 8
extern "C" __global__ void bad_assembly_load(float* out, const float* in, int* ints, int n) {
  unsigned a, b, c, d;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "l"(in + 2 * threadIdx.x));
  out[threadIdx.x] = __uint_as_float(a ^ b ^ c ^ d);
}
// grid 1, block 8
extern "C" __global__ void good_assembly_load(float* out, const float* in, int* ints, int n) {
  unsigned a, b, c, d;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "l"(in + 4 * threadIdx.x));
  out[threadIdx.x] = __uint_as_float(a ^ b ^ c ^ d);
}
