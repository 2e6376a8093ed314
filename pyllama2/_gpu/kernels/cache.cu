// Needs: common.cu
// Where keys and values of one layer lie, and how a vector of head_dim numbers is stored there or read.
//
//   keys    (n_rows, n_kv_heads, n_positions / 32, head_dim / piece, 32, piece)
//   values  (n_rows, n_kv_heads, n_positions, head_dim)
//   scales  (n_rows, n_kv_heads, n_positions) float32, for int8: a number is its code times the scale of its vector
//
// n_positions is a multiple of 32. A piece has 16 bytes, or fewer if these do not divide a vector. A lane has a
// position to itself, and reads its piece beside those of the other lanes. So scores need no shuffles. Eight positions
// of a piece are the 8 x 8 matrix of a tensor core. Numbers are rounded as on the CPU, so that either can load a row
// that the other saved.
//
// head below is row * n_kv_heads + kv_head.

namespace {

constexpr int kKeyBlock = 32;  // positions whose keys are interleaved

// The largest power of two, up to most, that divides head_dim.
constexpr int piece_of(int head_dim, int most) { return head_dim % most == 0 ? most : piece_of(head_dim, most / 2); }

template <int kHeadDim, class Code>
constexpr int kKeyPiece = piece_of(kHeadDim, 16 / static_cast<int>(sizeof(Code)));

// Index of number d of a key.
template <int kHeadDim, class Code>
__device__ __forceinline__ size_t key_index(size_t head, int n_positions, int position, int d) {
  constexpr int kPiece = kKeyPiece<kHeadDim, Code>;
  const size_t block = (head * n_positions + position) / kKeyBlock;
  return block * kKeyBlock * kHeadDim + (d / kPiece * kKeyBlock + position % kKeyBlock) * kPiece + d % kPiece;
}

// Index of the first number of a value.
template <int kHeadDim>
__device__ __forceinline__ size_t value_index(size_t head, int n_positions, int position) {
  return (head * n_positions + position) * kHeadDim;
}

// A type of so many bytes, which are loaded at once.
template <int kBytes>
struct Bytes;
template <>
struct Bytes<16> {
  using Type = uint4;
};
template <>
struct Bytes<8> {
  using Type = uint2;
};
template <>
struct Bytes<4> {
  using Type = unsigned;
};
template <>
struct Bytes<2> {
  using Type = unsigned short;
};
template <int kBytes>
using Raw = typename Bytes<kBytes>::Type;

__device__ __forceinline__ unsigned word_of(const uint4& raw, int i) {
  return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w;
}
__device__ __forceinline__ unsigned word_of(const uint2& raw, int i) { return i == 0 ? raw.x : raw.y; }
__device__ __forceinline__ unsigned word_of(unsigned raw, int) { return raw; }
__device__ __forceinline__ unsigned word_of(unsigned short raw, int) { return raw; }

// Number i of what was loaded, not multiplied with its scale.
template <class Code, class R>
__device__ __forceinline__ float widened(const R& raw, int i) {
  if constexpr (sizeof(Code) == 2) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word_of(raw, i / 2) >> i % 2 * 16)));
  } else {
    // 2^23 with code + 128 in its lowest byte, minus 2^23 + 128: a permutation and an exact subtraction.
    const unsigned word = word_of(raw, i / 4) ^ 0x80808080u;
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + i % 4)) - 8388736.0f;
  }
}

__device__ __forceinline__ float widened(__half number) { return __half2float(number); }
__device__ __forceinline__ float widened(signed char code) {
  return __uint_as_float(0x4b000000u | (static_cast<unsigned char>(code) ^ 0x80u)) - 8388736.0f;
}

// Stores numbers 2i and 2i + 1 of a float16 key or value: for a thread that has a pair after the rotation.
template <int kHeadDim>
__device__ __forceinline__ void store_key_pair(__half* keys, int head, int n_positions, int position, int i, float a,
                                               float b) {
  const size_t at = key_index<kHeadDim, __half>(head, n_positions, position, 2 * i);
  *reinterpret_cast<__half2*>(keys + at) = __floats2half2_rn(a, b);
}

template <int kHeadDim>
__device__ __forceinline__ void store_value_pair(__half* values, int head, int n_positions, int position, int i,
                                                 float a, float b) {
  const size_t at = value_index<kHeadDim>(head, n_positions, position) + 2 * i;
  *reinterpret_cast<__half2*>(values + at) = __floats2half2_rn(a, b);
}

// Numbers that each lane has of a vector of head_dim numbers: those at lane, lane + 32, ...
template <int kHeadDim>
constexpr int kPerLane = (kHeadDim + 31) / 32;

template <int kHeadDim>
__device__ void store_key(__half* keys, float*, int head, int n_positions, int position,
                          const float (&x)[kPerLane<kHeadDim>]) {
  for (int i = 0; i < kPerLane<kHeadDim>; i++) {
    const int d = i * 32 + threadIdx.x % 32;
    if (d < kHeadDim) keys[key_index<kHeadDim, __half>(head, n_positions, position, d)] = __float2half_rn(x[i]);
  }
}

template <int kHeadDim>
__device__ void store_value(__half* values, float*, int head, int n_positions, int position,
                            const float (&x)[kPerLane<kHeadDim>]) {
  for (int i = 0; i < kPerLane<kHeadDim>; i++) {
    const int d = i * 32 + threadIdx.x % 32;
    if (d < kHeadDim) values[value_index<kHeadDim>(head, n_positions, position) + d] = __float2half_rn(x[i]);
  }
}

// Codes -127 .. 127 of a vector. Returns the scale. NaN or infinity makes it infinite, and 0 times infinity is NaN.
template <int kHeadDim>
__device__ float quantize_vector(const float (&x)[kPerLane<kHeadDim>], signed char (&codes)[kPerLane<kHeadDim>]) {
  unsigned most = 0;  // magnitudes as integers are ordered like floats, and NaN is above infinity
  for (int i = 0; i < kPerLane<kHeadDim>; i++)
    if (i * 32 + static_cast<int>(threadIdx.x) % 32 < kHeadDim) most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
  for (int offset = 16; offset > 0; offset /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, offset));
  if (most < __float_as_uint(127.0f * kSmallestScale)) most = 0;
  const float scale = __uint_as_float(min(most, 0x7f800000u)) / 127.0f;
  const float factor = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < kPerLane<kHeadDim>; i++)
    codes[i] = static_cast<signed char>(max(-127, min(127, factor > 0.0f ? __float2int_rn(x[i] * factor) : 0)));
  return scale;
}

template <int kHeadDim>
__device__ void store_key(signed char* keys, float* scales, int head, int n_positions, int position,
                          const float (&x)[kPerLane<kHeadDim>]) {
  signed char codes[kPerLane<kHeadDim>];
  const float scale = quantize_vector<kHeadDim>(x, codes);
  for (int i = 0; i < kPerLane<kHeadDim>; i++) {
    const int d = i * 32 + threadIdx.x % 32;
    if (d < kHeadDim) keys[key_index<kHeadDim, signed char>(head, n_positions, position, d)] = codes[i];
  }
  if (threadIdx.x % 32 == 0) scales[static_cast<size_t>(head) * n_positions + position] = scale;
}

template <int kHeadDim>
__device__ void store_value(signed char* values, float* scales, int head, int n_positions, int position,
                            const float (&x)[kPerLane<kHeadDim>]) {
  signed char codes[kPerLane<kHeadDim>];
  const float scale = quantize_vector<kHeadDim>(x, codes);
  for (int i = 0; i < kPerLane<kHeadDim>; i++) {
    const int d = i * 32 + threadIdx.x % 32;
    if (d < kHeadDim) values[value_index<kHeadDim>(head, n_positions, position) + d] = codes[i];
  }
  if (threadIdx.x % 32 == 0) scales[static_cast<size_t>(head) * n_positions + position] = scale;
}

}  // namespace
