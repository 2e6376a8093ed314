// Needs: common.cu
// While a kernel ends, and until the next one has its first data, memory would have nothing to do. So a kernel prefetches
// the first bytes of the matrix or of the keys that the next one reads: they come to the L2 cache meanwhile. It is every
// other kilobyte of them. Then the next kernel has half of its first data from the cache, and the other half from memory
// at the same time.

namespace {

constexpr unsigned kTileAhead = 64 << 10;  // bytes of a tile that are prefetched at most
constexpr unsigned kSector = 32, kRun = 1024;  // bytes that are prefetched at once, and that lie together

// What the next kernel reads: count tiles, or keys of heads, of so many bytes each.
struct NextBytes {
  const char* first;  // NULL: nothing is to be prefetched
  size_t stride;
  unsigned bytes;
  int count;
  unsigned most;  // that are prefetched of each of them, a multiple of kRun
};

__device__ __forceinline__ NextBytes next_tiles(const void* codes, unsigned tile_bytes, int tiles) {
  return {static_cast<const char*>(codes), tile_bytes, tile_bytes, tiles, kTileAhead};
}

// Prefetches the block's share, of so many shares. Nothing is waited for.
__device__ __forceinline__ void prefetch_share(const NextBytes& next, unsigned share, unsigned shares) {
  if (next.first == nullptr) return;
  const unsigned sectors = min(next.most, (next.bytes / 2 + kRun - 1) / kRun * kRun) / kSector;
  const unsigned all = sectors * next.count, step = shares * blockDim.x;
  for (unsigned i = share * blockDim.x + threadIdx.x; i < all; i += step) {
    const unsigned byte = i % sectors * kSector, at = byte / kRun * (2 * kRun) + byte % kRun;
    if (at < next.bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(next.first + i / sectors * next.stride + at));
  }
}

}  // namespace
