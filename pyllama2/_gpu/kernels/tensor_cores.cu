// Needs: ptx.cu
// Instructions of tensor cores (sm_75 and later), and copies to shared memory that a thread does not wait for (sm_80).

#if __CUDA_ARCH__ >= 750

namespace {

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes to shared memory. They are there after wait_for_copies() and a barrier.
__device__ __forceinline__ void copy_piece(uint4* to, const uint4* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
  *to = load_once(from);
#endif
}

// The same with 4 bytes.
__device__ __forceinline__ void copy_word(float* to, const float* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
  *to = __ldg(from);
#endif
}

// What the thread has copied since the last call is one batch.
__device__ __forceinline__ void end_of_batch() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for the thread's own copies, all but those of the last kLeft batches.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// (a & mask) ^ flips, which the compiler makes two instructions of by itself.
__device__ __forceinline__ unsigned masked_and_flipped(unsigned a, unsigned mask, unsigned flips) {
  unsigned d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(mask), "r"(flips));
  return d;
}

// Four matrices of 8 rows of 16 bytes in shared memory: lane 8i + r gives the shared address of row r of matrix i. Each
// lane gets word lane % 4 of row lane / 4 of every matrix.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// d = c (16 rows, 8 columns) + a (16, 32) times b (32, 8), integers of 8 bits, by one warp. b is signed or unsigned.
// With g = lane / 4 and t = lane % 4, the lane has: of a, rows g and g + 8 at inputs 4t .. 4t + 3, then both at inputs
// that are 16 higher; of b, column g at inputs 4t .. 4t + 3, then 16 higher; of c and d, row g at columns 2t and 2t + 1,
// then row g + 8.
template <bool kUnsigned>
__device__ __forceinline__ void multiply_add(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                             const int* c) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kUnsigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
        "%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
        "%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  }
#else
  for (int half = 0; half < 2; half++) {
    int first[2] = {c[2 * half], c[2 * half + 1]};
    for (int k = 0; k < 2; k++) {
      const unsigned rows = a[2 * k + half], column = k == 0 ? b0 : b1;
      if constexpr (kUnsigned) {
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32 {%0, %1}, {%2}, {%3}, {%4, %5};"
            : "=r"(d[2 * half]), "=r"(d[2 * half + 1])
            : "r"(rows), "r"(column), "r"(first[0]), "r"(first[1]));
      } else {
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %5};"
            : "=r"(d[2 * half]), "=r"(d[2 * half + 1])
            : "r"(rows), "r"(column), "r"(first[0]), "r"(first[1]));
      }
      first[0] = d[2 * half], first[1] = d[2 * half + 1];
    }
  }
#endif
}

// The bits of 16 times a sum of q4, + kFloatBits, are those of the float 16 times the sum, + 2^23 + 2^22.
constexpr int kFloatBits = 0x4b400000;
constexpr float kFloatOffset = 786432.0f;  // (2^23 + 2^22) / 16

template <int kBits>
__device__ __forceinline__ float float_of(int sum, int other) {
  if (kBits == 4) return fmaf(__int_as_float(sum), 0.0625f, -kFloatOffset);  // exact
  return static_cast<float>(sum * 256 + other);
}

}  // namespace

#endif
