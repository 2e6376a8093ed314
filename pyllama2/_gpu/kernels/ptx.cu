// Instructions for which CUDA has no function, each in a function of its own, and the inner products made of them.

namespace {

// c + the sum of four products of bytes: those of a are unsigned, those of b signed.
__device__ __forceinline__ int dp4a_unsigned_signed(unsigned a, int b, int c) {
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(c) : "r"(a), "r"(b));
  return c;
}

// sum and other += exact products of 16 bytes of a row's codes with a vector's codes. q4: sum gets the low nibbles,
// other 16 times the high nibbles. q8: sum gets the vector's high bytes, other its low bytes.
template <int kBits>
__device__ __forceinline__ void dot_piece(const uint4& row, const uint4& first, const uint4& second, int& sum,
                                          int& other) {
  const unsigned w[4] = {row.x, row.y, row.z, row.w};
  const unsigned a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (kBits == 4) {
      sum = dp4a_unsigned_signed(w[i] & 0x0f0f0f0fu, static_cast<int>(a[i]), sum);
      other = dp4a_unsigned_signed(w[i] & 0xf0f0f0f0u, static_cast<int>(b[i]), other);
    } else {
      sum = __dp4a(static_cast<int>(w[i]), static_cast<int>(a[i]), sum);
      other = dp4a_unsigned_signed(b[i], static_cast<int>(w[i]), other);
    }
  }
}

// What is read only once does not evict anything from the L1 cache.
__device__ __forceinline__ unsigned load_once(const unsigned* p) {
#if __CUDA_ARCH__ < 700
  return __ldg(p);
#else
  unsigned v;
  asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
#endif
}
__device__ __forceinline__ uint4 load_once(const uint4* p) {
#if __CUDA_ARCH__ < 700
  return __ldg(p);
#else
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
#endif
}

}  // namespace
