// Needs: common.cu, silu.cu
// The token that follows, sampled from a vector of logits by the rules of sampler.py: one block for each vector.
//
// Weights e^((logit - highest) / temperature) are multiples of 2^-44, smaller ones are 0. So sums are exact in any
// order. There are three edges: of the top_k, of the nucleus (top_p), and the token on which the draw falls. Each is
// found a digit at a time, from the mass of each value of the digit, as in a radix sort. Nothing is sorted.

namespace {

typedef unsigned long long Mass;

constexpr int kSampleThreads = 1024;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kLogitBits = 32;
constexpr int kIdBits = 22;
constexpr float kHighestWeight = 17592186044416.0f;  // 2^44
static_assert(kBins == 2 * kSampleThreads, "a thread has two bins");

// Fractions are multiples of 2^-64, of min_p of 2^-44.
struct Draw {
  float temperature;  // 0: the largest logit
  int top_k;  // 0: all
  Mass top_p;  // 0: all
  Mass min_p;
  Mass uniform;
};

// Keys of ids, so that the lowest id has the largest key. The same function turns a key into its id.
struct LowIdsFirst {
  __device__ __forceinline__ unsigned operator()(int i) const { return (1u << kIdBits) - 1 - static_cast<unsigned>(i); }
};

struct SampleStorage {
  unsigned low[kBins], high[kBins];  // mass of each bin
  Mass of_warp[kSampleWarps];
  unsigned digit;  // what one thread has found, as are before and mass
  Mass before, mass;
};

// An integer in the order of the logits. NaN and infinite logits are above all others.
__device__ __forceinline__ unsigned ordered(float logit) {
  const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 equals 0
  if ((bits & 0x7f800000u) == 0x7f800000u) return 0xffffffffu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Keys in the order of the logits. Of equal logits, the lower id has the larger key.
__device__ __forceinline__ Mass rank_key(float logit, int id) {
  return static_cast<Mass>(ordered(logit)) << 32 | (0xffffffffu - static_cast<unsigned>(id));
}

// The largest v of a block, which every thread gets. The storage must not be in use.
__device__ Mass block_largest(Mass v, SampleStorage& storage) {
  for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(kAllLanes, v, offset));
  if (threadIdx.x % 32 == 0) storage.of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = storage.of_warp[threadIdx.x % 32];
  for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
}

__device__ Mass block_sum(Mass v, SampleStorage& storage) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) storage.of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = storage.of_warp[threadIdx.x % 32];
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

__device__ __forceinline__ void add_to_bin(Mass mass, unsigned bin, SampleStorage& storage) {
  // Two additions of 32 bits are faster than one of 64. The thread that makes the lower half overflow adds the carry.
  const unsigned low = static_cast<unsigned>(mass), old = atomicAdd(&storage.low[bin], low);
  const unsigned high = static_cast<unsigned>(mass >> 32) + (old + low < old ? 1u : 0u);
  if (high != 0) atomicAdd(&storage.high[bin], high);
}

// Adds each lane's mass to its bin. All lanes of a warp must call it. Consecutive ids have the same first digit: their
// additions would wait for each other, so they are added up within the warp first. Logits have a bin for each quarter
// of an octave, which few lanes share.
__device__ __forceinline__ void add_to_bins(Mass mass, unsigned bin, SampleStorage& storage) {
  const unsigned there = __ballot_sync(kAllLanes, mass != 0);
  if (there == 0) return;
  const int leader = __ffs(static_cast<int>(there)) - 1;
  const unsigned first = __shfl_sync(kAllLanes, bin, leader);
  const unsigned others = __ballot_sync(kAllLanes, mass != 0 && bin != first);
  if (others == 0) {
    for (int offset = 16; offset > 0; offset /= 2) mass += __shfl_xor_sync(kAllLanes, mass, offset);
    if (static_cast<int>(threadIdx.x % 32) == leader) add_to_bin(mass, bin, storage);
  } else if (mass != 0) {
    add_to_bin(mass, bin, storage);
  }
}

struct Edge {
  unsigned key;
  Mass before;  // mass of larger keys
  Mass mass;  // of this key
};

// The smallest key of tokens 0 .. n for which the mass of all larger keys is at most target. target is below the mass
// of all tokens. key_of(i) has kBits bits. mass_of(i) is 0 for a token that does not count. All threads get the edge.
template <int kBits, typename KeyOf, typename MassOf>
__device__ Edge find_edge(int n, Mass target, KeyOf key_of, MassOf mass_of, SampleStorage& storage) {
  Edge edge = {0, 0, 0};
  int digit_end = kBits;
  while (digit_end > 0) {
    const int shift = max(digit_end - kDigitBits, 0);
    for (int bin = threadIdx.x; bin < kBins; bin += kSampleThreads) storage.low[bin] = storage.high[bin] = 0;
    __syncthreads();
    for (int first = 0; first < n; first += kSampleThreads) {  // by whole warps
      const int i = first + static_cast<int>(threadIdx.x);
      const unsigned key = i < n ? key_of(i) : 0;
      const bool counts = i < n && (digit_end == kBits || key >> digit_end == edge.key >> digit_end);
      add_to_bins(counts ? mass_of(i) : Mass(0), (key >> shift) & ((1u << (digit_end - shift)) - 1), storage);
    }
    __syncthreads();
    // The mass before each bin, in descending order of the bins. A thread has two bins.
    const int bin = kBins - 1 - 2 * static_cast<int>(threadIdx.x), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Mass first = static_cast<Mass>(storage.high[bin]) << 32 | storage.low[bin];
    const Mass second = static_cast<Mass>(storage.high[bin - 1]) << 32 | storage.low[bin - 1];
    Mass before = first + second;
    for (int offset = 1; offset < 32; offset *= 2) {
      const Mass lower = __shfl_up_sync(kAllLanes, before, offset);
      if (lane >= offset) before += lower;
    }
    if (lane == 31) storage.of_warp[warp] = before;
    __syncthreads();
    before += edge.before - first - second;
    for (int i = 0; i < warp; i++) before += storage.of_warp[i];
    if (before <= target && target < before + first + second) {
      const bool is_first = target < before + first;
      storage.digit = static_cast<unsigned>(is_first ? bin : bin - 1);
      storage.before = is_first ? before : before + first;
      storage.mass = is_first ? first : second;
    }
    __syncthreads();
    edge = {edge.key | storage.digit << shift, storage.before, storage.mass};
    digit_end = shift;
  }
  return edge;
}

// The rank key of the last token that is kept: the last one before which the mass is at most target. Tokens of equal
// logits have equal masses.
template <typename MassOf>
__device__ Mass last_kept(const float* logits, int n, Mass target, MassOf mass_of, SampleStorage& storage) {
  const Edge edge = find_edge<kLogitBits>(n, target, [=](int i) { return ordered(logits[i]); }, mass_of, storage);
  // mass_of may exclude some tokens with this logit, but none with a lower id than one that it counts.
  const auto is_equal = [=](int i) { return ordered(logits[i]) == edge.key && mass_of(i) > 0 ? Mass(1) : Mass(0); };
  Mass equals = 0;
  for (int i = threadIdx.x; i < n; i += kSampleThreads) equals += is_equal(i);
  equals = block_sum(equals, storage);
  const Mass kept = (target - edge.before) / (edge.mass / equals) + 1;
  if (kept >= equals) return static_cast<Mass>(edge.key) << 32;
  const LowIdsFirst low_ids_first;
  const Edge last = find_edge<kIdBits>(n, kept - 1, low_ids_first, is_equal, storage);
  return static_cast<Mass>(edge.key) << 32 | (0xffffffffu - low_ids_first(static_cast<int>(last.key)));
}

__device__ int draw_token(const float* logits, int n, const Draw& draw, float highest, SampleStorage& storage) {
  Mass last = 0, least = 0;  // rank key and weight of the last token that is kept
  const auto weight = [&](int i) {
    if (rank_key(logits[i], i) < last) return Mass(0);
    const Mass weight = static_cast<Mass>(exponential((logits[i] - highest) / draw.temperature) * kHighestWeight);
    return weight >= least ? weight : Mass(0);
  };
  const auto sum = [&] {
    Mass mass = 0;
    for (int i = threadIdx.x; i < n; i += kSampleThreads) mass += weight(i);
    return block_sum(mass, storage);
  };
  if (draw.top_k > 0 && draw.top_k < n) {
    last = last_kept(logits, n, static_cast<Mass>(draw.top_k - 1), [](int) { return Mass(1); }, storage);
  }
  if (draw.top_p > 0) last = max(last, last_kept(logits, n, __umul64hi(draw.top_p, sum()), weight, storage));
  least = draw.min_p;
  const LowIdsFirst low_ids_first;
  const Edge edge = find_edge<kIdBits>(n, __umul64hi(draw.uniform, sum()), low_ids_first, weight, storage);
  return static_cast<int>(low_ids_first(static_cast<int>(edge.key)));
}

}  // namespace

// logits (n, vocab_size), draws (n,) -> sampled (n,), -1 for logits that are not finite. tokens[i] becomes the sampled
// token and positions[i] one more: the input of the next step, unless the host copies another there.
extern "C" __global__ void __launch_bounds__(kSampleThreads, 1)
    sample(const float* __restrict__ logits, int vocab_size, const Draw* __restrict__ draws, int* __restrict__ sampled,
           int* __restrict__ tokens, int* __restrict__ positions) {
  __shared__ SampleStorage storage;
  const float* row = logits + static_cast<size_t>(blockIdx.x) * vocab_size;
  Mass largest = 0;
  for (int i = threadIdx.x; i < vocab_size; i += kSampleThreads) largest = max(largest, rank_key(row[i], i));
  largest = block_largest(largest, storage);
  const bool finite = largest >> 32 != 0xffffffffu;
  int id = static_cast<int>(0xffffffffu - static_cast<unsigned>(largest));
  const Draw draw = draws[blockIdx.x];
  if (finite && draw.temperature > 0) id = draw_token(row, vocab_size, draw, row[id], storage);
  if (threadIdx.x == 0) {
    sampled[blockIdx.x] = finite ? id : -1;
    tokens[blockIdx.x] = finite ? id : 0;
    positions[blockIdx.x] += 1;
  }
}
