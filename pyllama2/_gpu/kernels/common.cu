// Sums and maxima over a warp, and the formats of matrices and of the vectors that they are multiplied with.
//
// A quantized matrix (rows, columns) lies on the device in tiles of 32 rows, the last padded with zeros:
//
//   codes   (tiles, groups, group size * bits / 128, 32, 16 bytes): one lane has one row, 16 bytes at a time.
//           q4: byte j of a row's group has input j of the group in its low nibble, and input group size / 2 + j in its
//           high nibble, both from 0 to 15, where 8 is zero. q8: int8.
//   scales  (tiles, groups, 32) float16
//
// A vector (columns,) that such a matrix is multiplied with is cut into the same groups, with zeros after its end:
//
//   q4      codes int8 (stride,), stride = groups * group size; scales float32 (groups,);
//           offsets int32 (groups,), -8 times the sum of a group's codes
//   q8      codes (2, stride) bytes: the high bytes of int16 numbers, signed, then the low bytes, unsigned; scales
//
// A float16 or float32 matrix lies in tiles of 32 rows, too. Each product is 16 running sums, of every 16th input (see
// float_product.cu). The inputs of a running sum lie together, and rows are padded to a multiple of 128 inputs:
//
//   numbers (tiles, 16, groups of 128 * bits / 16, 32, 16 bytes): place l has inputs l, l + 16, l + 32, ...
//
// A vector for it has float32 numbers (16, groups * 8) in the same order, with zeros after its end.
//
// The sum of a group's products of codes is an exact integer. Groups are added in order: total = fmaf(sum, weight scale
// * vector scale, total), as on the CPU. So a product has the CPU's bits, for any number of columns and in every
// kernel.

#include <cuda_fp16.h>

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kTileRows = 32;
constexpr int kRunningSums = 16;  // of a product of floats
constexpr int kFloatGroup = 128;  // numbers of a vector for a float matrix that are written together
// A vector whose scale would be smaller is quantized to zeros with the scale 0, as on the CPU. CuPy compiles with
// -ftz=true: denormal numbers are zeros. With larger scales they have the code 0 anyway.
constexpr float kSmallestScale = 0x1p-100f;

__device__ __forceinline__ float warp_sum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

__device__ __forceinline__ int warp_sum(int v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kAllLanes, v);
#else
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
#endif
}

__device__ __forceinline__ unsigned warp_max(unsigned v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, v);
#else
  for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
#endif
}

// One quantized vector, or n of them, one after the other. For a float matrix, codes are its float32 numbers.
struct Quantized {
  signed char* codes;
  float* scales;
  int* offsets;
  int groups;  // of one vector
};

// Orders what the thread knows of before what comes after. __threadfence() asks for more: one order for all fences.
__device__ __forceinline__ void fence_device() {
#if __CUDA_ARCH__ < 700
  __threadfence();
#else
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Whether this block is the last of so many blocks to come here. Its threads see what the others wrote before, if they
// read it with __ldcg. counter is 0 before and after. All threads of a block must call it. One thread's fences are
// enough: what they order includes all that the barriers order.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_device();
    last = atomicAdd(counter, 1u) == blocks - 1;
    if (last) {
      fence_device();
      *counter = 0;
    }
  }
  __syncthreads();
  return last;
}

}  // namespace
