// Needs: common.cu
// The greedy choice: of each vector of logits the largest, of equals the one with the lowest id.

namespace {

constexpr int kSampleThreads = 1024;

// Ordered like (logit, then the lower id): NaN is above all, so that the choice can say that there is one.
__device__ __forceinline__ unsigned long long order_key(float logit, int id) {
  const unsigned bits = __float_as_uint(logit);
  unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if ((bits & 0x7fffffffu) == 0) ordered = 0x80000000u;  // -0 equals 0
  if (logit != logit) ordered = 0xffffffffu;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - static_cast<unsigned>(id));
}

__device__ __forceinline__ unsigned long long warp_largest(unsigned long long key) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, key, offset);
    if (other > key) key = other;
  }
  return key;
}

}  // namespace

// logits (n, vocab_size) -> chosen (n,), -1 for a vector with a NaN or whose largest is infinite. Where tokens is not
// NULL, tokens[i] becomes the choice and positions[i] one more: the next step's input. One block per vector.
extern "C" __global__ void __launch_bounds__(kSampleThreads)
    argmax(const float* __restrict__ logits, int vocab_size, int* __restrict__ chosen, int* __restrict__ tokens,
           int* __restrict__ positions) {
  __shared__ unsigned long long largest[kSampleThreads / 32];
  const float* row = logits + static_cast<size_t>(blockIdx.x) * vocab_size;
  unsigned long long key = 0;
  for (int i = threadIdx.x; i < vocab_size; i += kSampleThreads) {
    const unsigned long long other = order_key(row[i], i);
    if (other > key) key = other;
  }
  key = warp_largest(key);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  key = warp_largest(largest[threadIdx.x]);
  if (threadIdx.x != 0) return;
  const unsigned ordered = static_cast<unsigned>(key >> 32);
  const int id = static_cast<int>(0xffffffffu - static_cast<unsigned>(key));
  const bool finite = ordered > 0x007fffffu && ordered < 0xff800000u;
  chosen[blockIdx.x] = finite ? id : -1;
  if (tokens != nullptr) {
    tokens[blockIdx.x] = finite ? id : 0;
    positions[blockIdx.x] += 1;
  }
}
