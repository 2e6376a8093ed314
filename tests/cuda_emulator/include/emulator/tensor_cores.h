// mma.sync and ldmatrix. The lanes of a warp bring their registers, and each computes its own elements of the result.
//
// Fragments, with row = lane / 4 and t = lane % 4, for elements of 16 bits (in brackets: of 8 bits):
//   A: register r holds columns 2t.. (4t..) of row + 8 (r & 1); r >> 1 adds half of the tile's columns
//   B: register r holds rows 2t.. (4t..) of column lane / 4; r adds half of the tile's rows
//   C, D: registers 0, 1: columns 2t, 2t + 1 of row; 2, 3: of row + 8
#pragma once

namespace emulator_ptx {

#define EMULATOR_HERE_LAST , const char *file = __builtin_FILE(), int line = __builtin_LINE()

// How to take the elements of a register apart.
struct Halves {
  using Sum = float;
  static constexpr int n = 2;
  static float get(unsigned word, int i) {
    return static_cast<float>(emulator::reinterpret<_Float16>(static_cast<unsigned short>(word >> (16 * i))));
  }
};
template <class Byte>
struct Integers {
  using Sum = int;
  static constexpr int n = 4;
  static int get(unsigned word, int i) { return static_cast<Byte>(word >> (8 * i)); }
};

// D = A B + C for 8 kBlocks rows and 8 columns; kA registers of A and kB of B a lane.
template <class A, class B, int kBlocks, int kA, int kB, class D>
inline void multiply(D (&d)[2 * kBlocks], const unsigned (&a)[kA], const unsigned (&b)[kB], const D (&c)[2 * kBlocks],
                     const char* file, int line) {
  unsigned registers[kA + kB];
  for (int i = 0; i < kA; i++) registers[i] = a[i];
  for (int i = 0; i < kB; i++) registers[kA + i] = b[i];
  const Exchange* all =
      emulator_exchange_wide(emulator::kMultiply, 0xffffffffu, registers, sizeof registers, file, line);
  if (all->arrived != 0xffffffffu) emulator_bad_lane(__builtin_ctz(~all->arrived), file, line);
  const int row = emulator_indices.lane / 4, t = emulator_indices.lane % 4;
  const auto word = [&](int lane, int i) { return reinterpret_cast<const unsigned*>(all->wide[lane])[i]; };
  for (int i = 0; i < 2 * kBlocks; i++) {
    const int column = 2 * t + (i & 1);
    typename A::Sum sum = c[i];
    for (int r = 0; r < kB; r++) {
      for (int q = 0; q < 4; q++) {
        const unsigned left = word(row * 4 + q, kBlocks * r + (i >> 1)), right = word(column * 4 + q, kA + r);
        for (int e = 0; e < A::n; e++) sum += A::get(left, e) * B::get(right, e);
      }
    }
    d[i] = sum;
  }
}

#define EMULATOR_MMA_1_1(name, D, A, B)                                                                          \
  EMULATED void mma_sync_aligned_##name(D& d0, D& d1, unsigned a0, unsigned b0, D c0, D c1 EMULATOR_HERE_LAST) { \
    D d[2];                                                                                                      \
    multiply<A, B, 1, 1, 1, D>(d, {a0}, {b0}, {c0, c1}, file, line);                                             \
    d0 = d[0], d1 = d[1];                                                                                        \
  }
#define EMULATOR_MMA_2_1(name, D, A, B)                                                                                \
  EMULATED void mma_sync_aligned_##name(D& d0, D& d1, D& d2, D& d3, unsigned a0, unsigned a1, unsigned b0, D c0, D c1, \
                                        D c2, D c3 EMULATOR_HERE_LAST) {                                               \
    D d[4];                                                                                                            \
    multiply<A, B, 2, 2, 1, D>(d, {a0, a1}, {b0}, {c0, c1, c2, c3}, file, line);                                       \
    d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];                                                                        \
  }
#define EMULATOR_MMA_4_2(name, D, A, B)                                                                    \
  EMULATED void mma_sync_aligned_##name(D& d0, D& d1, D& d2, D& d3, unsigned a0, unsigned a1, unsigned a2, \
                                        unsigned a3, unsigned b0, unsigned b1, D c0, D c1, D c2,           \
                                        D c3 EMULATOR_HERE_LAST) {                                         \
    D d[4];                                                                                                \
    multiply<A, B, 2, 4, 2, D>(d, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, file, line);               \
    d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];                                                            \
  }
using Signed = Integers<signed char>;
using Unsigned = Integers<unsigned char>;

#if __CUDA_ARCH__ >= 750
EMULATOR_MMA_2_1(m16n8k8_row_col_f32_f16_f16_f32, float, Halves, Halves)
EMULATOR_MMA_1_1(m8n8k16_row_col_s32_s8_s8_s32, int, Signed, Signed)
EMULATOR_MMA_1_1(m8n8k16_row_col_s32_s8_u8_s32, int, Signed, Unsigned)
EMULATOR_MMA_1_1(m8n8k16_row_col_s32_u8_s8_s32, int, Unsigned, Signed)
#endif
#if __CUDA_ARCH__ >= 800
EMULATOR_MMA_4_2(m16n8k16_row_col_f32_f16_f16_f32, float, Halves, Halves)
EMULATOR_MMA_2_1(m16n8k16_row_col_s32_s8_s8_s32, int, Signed, Signed)
EMULATOR_MMA_2_1(m16n8k16_row_col_s32_s8_u8_s32, int, Signed, Unsigned)
EMULATOR_MMA_2_1(m16n8k16_row_col_s32_u8_s8_s32, int, Unsigned, Signed)
EMULATOR_MMA_4_2(m16n8k32_row_col_s32_s8_s8_s32, int, Signed, Signed)
EMULATOR_MMA_4_2(m16n8k32_row_col_s32_s8_u8_s32, int, Signed, Unsigned)
EMULATOR_MMA_4_2(m16n8k32_row_col_s32_u8_s8_s32, int, Unsigned, Signed)
#endif

#if __CUDA_ARCH__ >= 750
// ldmatrix: lane 8i + r gives the address of row r of matrix i; every lane receives two neighbours of row lane / 4.
template <int kMatrices, bool kTransposed>
UNCHECKED inline void load_matrices(unsigned (&d)[kMatrices], unsigned address, const void* site, const char* file,
                                    int line) {
  const Exchange* all = emulator_exchange(kLoadMatrix, 0xffffffffu, address, file, line);
  if (static_cast<int>(emulator_indices.lane) < 8 * kMatrices) emulator_read(shared_at(address), 16, site);
  const int row = emulator_indices.lane / 4, column = 2 * (emulator_indices.lane % 4);
  for (int i = 0; i < kMatrices; i++) {
    const auto element = [&](int r, int c) {
      unsigned short value;
      __builtin_memcpy(&value, shared_at(static_cast<unsigned>(all->narrow[8 * i + r])) + 2 * c, 2);
      return static_cast<unsigned>(value);
    };
    d[i] = kTransposed ? element(column, row) | element(column + 1, row) << 16
                       : element(row, column) | element(row, column + 1) << 16;
  }
}

#define EMULATOR_LDMATRIX(suffix, transposed)                                                                     \
  UNCHECKED inline void ldmatrix_sync_aligned_m8n8_x1##suffix(unsigned& a, unsigned address EMULATOR_HERE_LAST) { \
    unsigned d[1];                                                                                                \
    load_matrices<1, transposed>(d, address, EMULATOR_SITE, file, line);                                          \
    a = d[0];                                                                                                     \
  }                                                                                                               \
  UNCHECKED inline void ldmatrix_sync_aligned_m8n8_x2##suffix(unsigned& a, unsigned& b,                           \
                                                              unsigned address EMULATOR_HERE_LAST) {              \
    unsigned d[2];                                                                                                \
    load_matrices<2, transposed>(d, address, EMULATOR_SITE, file, line);                                          \
    a = d[0], b = d[1];                                                                                           \
  }                                                                                                               \
  UNCHECKED inline void ldmatrix_sync_aligned_m8n8_x4##suffix(unsigned& a, unsigned& b, unsigned& c, unsigned& e, \
                                                              unsigned address EMULATOR_HERE_LAST) {              \
    unsigned d[4];                                                                                                \
    load_matrices<4, transposed>(d, address, EMULATOR_SITE, file, line);                                          \
    a = d[0], b = d[1], c = d[2], e = d[3];                                                                       \
  }
EMULATOR_LDMATRIX(_shared_b16, false)
EMULATOR_LDMATRIX(_trans_shared_b16, true)
#endif

}  // namespace emulator_ptx
