// Lanes run one after another, so a request of a warp is put together from their accesses: the k-th execution of one
// instruction by each lane since the lanes last met belongs to the k-th request.

#include "requests.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "shadow.h"

// As Python reads them.
struct EmulatorSite {
  const void* code;
  int space, write, bytes;  // bytes: of one access
  uint64_t requests, sectors, used_bytes, transactions, ideal_transactions;
};

struct EmulatorTotals {
  uint64_t counters[emulator::kCounters];
  uint64_t loads, stores, shared_loads, shared_stores;  // of lanes
  uint64_t bytes_read, bytes_written;  // distinct bytes of global memory
  uint64_t sectors_read, sectors_written;  // distinct sectors
};

namespace emulator {

namespace {

constexpr int kSector = 32, kBanks = 32;

struct Request {
  uintptr_t addresses[32];
  uint32_t lanes = 0;
  int bytes = 0;
};

struct Pending {
  uint32_t executed[32] = {};
  std::vector<Request> requests;
};

struct Key {
  const void* code;
  int space_and_write, bytes;
  bool operator==(const Key& o) const {
    return code == o.code && space_and_write == o.space_and_write && bytes == o.bytes;
  }
};

struct Hash {
  size_t operator()(const Key& k) const {
    return reinterpret_cast<size_t>(k.code) * 0x9E3779B97F4A7C15ull + k.space_and_write * 131 + k.bytes;
  }
};

std::unordered_map<Key, Pending, Hash> pending[kMaxWarps];
std::unordered_map<Key, EmulatorSite, Hash> sites;
std::unordered_map<uintptr_t, uint32_t> touched[2];  // sector -> its bytes: read, written
std::vector<EmulatorSite> listed;
EmulatorTotals totals;

void finish_global(const Request& request, EmulatorSite& site, bool write) {
  std::vector<std::pair<uintptr_t, uint32_t>> sectors;
  for (int lane = 0; lane < 32; lane++) {
    if (!(request.lanes >> lane & 1)) continue;
    for (uintptr_t byte = request.addresses[lane]; byte < request.addresses[lane] + request.bytes; byte++) {
      const uintptr_t sector = byte / kSector;
      if (sectors.empty() || sectors.back().first != sector) sectors.push_back({sector, 0});
      sectors.back().second |= 1u << (byte % kSector);
    }
  }
  std::sort(sectors.begin(), sectors.end());
  for (size_t i = 0; i < sectors.size();) {
    uint32_t bytes = 0;
    const uintptr_t sector = sectors[i].first;
    for (; i < sectors.size() && sectors[i].first == sector; i++) bytes |= sectors[i].second;
    site.sectors++;
    site.used_bytes += __builtin_popcount(bytes);
    touched[write][sector] |= bytes;
  }
}

// Shared memory serves 32 banks of 4 bytes at a time; accesses of 8 and 16 bytes go in 2 and 4 parts.
void finish_shared(const Request& request, EmulatorSite& site) {
  const int parts = std::max(1, request.bytes / 4), lanes = 32 / parts;
  for (int part = 0; part < parts; part++) {
    std::vector<uintptr_t> words;
    for (int lane = part * lanes; lane < (part + 1) * lanes; lane++) {
      if (!(request.lanes >> lane & 1)) continue;
      const uintptr_t first = request.addresses[lane] / 4, last = (request.addresses[lane] + request.bytes - 1) / 4;
      for (uintptr_t word = first; word <= last; word++) words.push_back(word);
    }
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int in_bank[kBanks] = {};
    for (uintptr_t word : words) in_bank[word % kBanks]++;
    site.transactions += *std::max_element(in_bank, in_bank + kBanks);
    site.ideal_transactions += (words.size() + kBanks - 1) / kBanks;
  }
}

void finish(const Key& key, Pending& of_site) {
  EmulatorSite& site = sites[key];
  const int space = key.space_and_write >> 1;
  const bool write = key.space_and_write & 1;
  site.code = key.code, site.space = space, site.write = write, site.bytes = key.bytes;
  for (const Request& request : of_site.requests) {
    site.requests++;
    if (space == kGlobal)
      finish_global(request, site, write);
    else
      finish_shared(request, site);
  }
  of_site = {};
}

}  // namespace

void clear_requests() {
  for (auto& of_warp : pending) of_warp.clear();
  sites.clear();
  for (auto& t : touched) t.clear();
  totals = {};
}

void count(int counter) { totals.counters[counter]++; }

void count_access(uintptr_t address, int bytes, int space, bool write, const void* code) {
  if (space == kConstant) return;
  if (space == kGlobal)
    (write ? totals.stores : totals.loads)++;
  else
    (write ? totals.shared_stores : totals.shared_loads)++;
  Pending& of_site = pending[state.current >> 5][{code, space * 2 + write, bytes}];
  const int lane = state.current & 31;
  const uint32_t k = of_site.executed[lane]++;
  if (k >= of_site.requests.size()) of_site.requests.resize(k + 1);
  Request& request = of_site.requests[k];
  request.addresses[lane] = address;
  request.lanes |= 1u << lane;
  request.bytes = bytes;
}

void end_of_warp_requests(int warp) {
  for (auto& [key, of_site] : pending[warp]) {
    if (!of_site.requests.empty()) finish(key, of_site);
  }
}

void end_of_requests() {
  for (int warp = 0; warp < state.n_warps; warp++) end_of_warp_requests(warp);
}

}  // namespace emulator

using namespace emulator;

void emulator_count(int counter) {
  if (state.modes.count) count(counter);
}

extern "C" EMULATOR_EXPORT int emulator_n_sites() {
  listed.clear();
  for (const auto& [key, site] : sites) listed.push_back(site);
  return static_cast<int>(listed.size());
}

extern "C" EMULATOR_EXPORT EmulatorSite emulator_site(int i) { return listed[i]; }

extern "C" EMULATOR_EXPORT EmulatorTotals emulator_totals() {
  for (int write = 0; write < 2; write++) {
    uint64_t bytes = 0;
    for (const auto& [sector, used] : touched[write]) bytes += __builtin_popcount(used);
    (write ? totals.bytes_written : totals.bytes_read) = bytes;
    (write ? totals.sectors_written : totals.sectors_read) = touched[write].size();
  }
  return totals;
}
