// Memory is looked at in lines of 16 bytes. As long as a line is accessed as a whole, it has one cell; the first access
// to a part of it gives it one cell per byte. A cell keeps the last write, and two of the reads or atomics since then
// that are not ordered: a later writer differs from at least one of two threads, so no race is missed.

#include "shadow.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "ordering.h"
#include "requests.h"

namespace emulator {

namespace {

constexpr int kLine = 16, kPageLines = 64;
constexpr size_t kMaxStaticShared = 48 << 10;

struct Cell {
  Access write, first, second;
};

struct Line {
  Cell whole;
  std::unique_ptr<Cell[]> parts;
};

struct Page {
  Line lines[kPageLines];
};

struct Region {
  uintptr_t start;
  size_t bytes;
  int space;
  const char* name;
  uint8_t* written;  // a byte per byte, 0 for those never written; nullptr when all of them are
  std::vector<std::unique_ptr<Page>> pages;
};

std::vector<Region> regions;  // by start
size_t last_region;

const char* verb(Kind kind) {
  if (kind == Kind::kBeginsCopy) return "asynchronous copy";
  if (kind == Kind::kPrefetch) return "prefetch";
  return kind == Kind::kWrite ? "write" : kind == Kind::kAtomic ? "atomic" : "read";
}

const char* space_name(int space) { return space == kShared ? "shared" : space == kGlobal ? "global" : "constant"; }

uint32_t site_of(const void* code) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(state.kernel));
}

Region* region_at(uintptr_t address) {
  if (last_region < regions.size()) {
    Region& r = regions[last_region];
    if (address - r.start < r.bytes) return &r;
  }
  auto after = std::upper_bound(regions.begin(), regions.end(), address,
                                [](uintptr_t a, const Region& r) { return a < r.start; });
  if (after == regions.begin()) return nullptr;
  Region& r = *--after;
  if (address - r.start >= r.bytes) return nullptr;
  last_region = &r - regions.data();
  return &r;
}

void out_of_bounds(uintptr_t address, int bytes, Kind kind, const void* code) {
  const Region* nearest = nullptr;
  size_t distance = ~size_t{0};
  for (const Region& r : regions) {
    const size_t d = address < r.start ? r.start - address : address - r.start;
    if (address >= r.start && address < r.start + r.bytes + 4096) {
      nearest = &r;
      break;
    }
    if (d < distance) nearest = &r, distance = d;
  }
  std::string message = text("%s of %d bytes outside of all arrays that the launch was given", verb(kind), bytes);
  if (nearest) {
    message +=
        text("; nearest: byte %td of %s, which has %zu",
             static_cast<ptrdiff_t>(address) - static_cast<ptrdiff_t>(nearest->start), nearest->name, nearest->bytes);
  }
  find("out of bounds", message, {code});
  give_up();
}

template <class T>
bool is_inside(uintptr_t address, const T& object) {
  return address - reinterpret_cast<uintptr_t>(&object) < sizeof(T);
}

bool in_stacks(uintptr_t address) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(stack_of(0));
  return address - first < kMaxThreads * kStackBytes;
}

void check_local(uintptr_t address, Kind kind, const void* code) {
  const uintptr_t mine = reinterpret_cast<uintptr_t>(stack_of(state.current));
  if (address - mine < kStackBytes) return;
  find("out of bounds", text("%s of another thread's local memory", verb(kind)), {code});
  give_up();
}

void report_race(const Region& region, const Access& earlier, const char* what, const char* earlier_what, size_t offset,
                 const void* code) {
  const bool same_block = earlier.block == state.block_number;
  const bool same_warp = same_block && earlier.thread / 32 == state.current / 32;
  std::string who = text("thread %d", earlier.thread);
  if (!same_block) who += text(" of block number %u", earlier.block);
  const char* missing = same_warp    ? "no __syncwarp or barrier between them"
                        : same_block ? "no barrier between them"
                                     : "no fence and atomic that orders the blocks";
  find("race",
       text("%s of %s memory, byte %zu of %s, races with a %s by %s: %s", what, space_name(region.space), offset,
            region.name, earlier_what, who.c_str(), missing),
       {code}, {code_of(earlier.site)});
}

void touch(Cell& cell, const Region& region, size_t offset, Kind kind, const void* code) {
  const Access me = {state.block_number, time_now(), site_of(code), static_cast<uint16_t>(state.current),
                     kind == Kind::kAtomic};
  const uintptr_t address = region.start + offset;
  const auto clashes = [&](const Access& earlier) {
    if (earlier.block == kNobody || (earlier.thread == me.thread && earlier.block == me.block)) return false;
    if (region.space == kShared && earlier.block != me.block) return false;  // another block's shared memory
    return !is_ordered(earlier, kind == Kind::kReadPastL1, address);
  };
  const bool writes = kind == Kind::kWrite || kind == Kind::kBeginsCopy;
  const char* name = writes ? verb(kind) : me.atomic ? "atomic" : "read";
  if (clashes(cell.write)) report_race(region, cell.write, name, "write", offset, code);
  for (const Access& earlier : {cell.first, cell.second}) {
    if ((writes || earlier.atomic != me.atomic) && clashes(earlier)) {
      report_race(region, earlier, name, earlier.atomic ? "atomic" : "read", offset, code);
    }
  }
  if (kind == Kind::kReadConstant && cell.write.block != kNobody) {
    find("race", text("read-only load of memory that the launch writes: byte %zu of %s", offset, region.name), {code},
         {code_of(cell.write.site)});
  }
  if (kind == Kind::kBeginsCopy) return;  // what is read before it arrives is still what was there
  if (writes) {
    cell = {me, {}, {}};
    return;
  }
  if (region.space == kShared && cell.write.block != me.block) {
    find("uninitialised",
         text("%s of shared memory that this block never wrote: byte %zu of %s", name, offset, region.name), {code});
  }
  if (clashes(cell.first))
    cell.second = me;
  else
    cell.first = me;
}

void touch_line(Region& region, size_t offset, int bytes, Kind kind, const void* code) {
  const size_t number = offset / kLine;
  if (region.pages.empty()) region.pages.resize(region.bytes / (kLine * kPageLines) + 1);
  auto& page = region.pages[number / kPageLines];
  if (!page) page = std::make_unique<Page>();
  Line& line = page->lines[number % kPageLines];
  if (!line.parts && bytes == kLine) return touch(line.whole, region, offset, kind, code);
  if (!line.parts) {
    line.parts = std::make_unique<Cell[]>(kLine);
    std::fill_n(line.parts.get(), kLine, line.whole);
  }
  for (int i = 0; i < bytes; i++) touch(line.parts[offset % kLine + i], region, offset + i, kind, code);
}

void check_written(Region& region, size_t offset, int bytes, Kind kind, const void* code) {
  uint8_t* written = region.written + offset;
  if (kind != Kind::kWrite && memchr(written, 0, bytes)) {
    find("uninitialised",
         text("%s of global memory that was never written: byte %zu of %s", verb(kind), offset, region.name), {code});
  }
  if (kind == Kind::kWrite || kind == Kind::kAtomic) memset(written, 1, bytes);
}

}  // namespace

const char* code_of(uint32_t site) { return reinterpret_cast<const char*>(state.kernel) + static_cast<int32_t>(site); }

void clear_memory() {
  regions.clear();
  last_region = 0;
}

void add_memory(uintptr_t start, size_t bytes, int space, const char* name, uint8_t* written) {
  regions.push_back({start, bytes, space, name, written, {}});
}

void sort_memory() {
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.start < b.start; });
}

void check_access(uintptr_t address, int bytes, Kind kind, bool must_be_aligned, const void* code) {
  if (is_inside(address, emulator_indices) || is_inside(address, state)) return;  // threadIdx; what a shuffle brought
  if (in_stacks(address)) return check_local(address, kind, code);
  if (must_be_aligned && address % bytes) {
    const Region* region = region_at(address);
    find("misaligned",
         text("%s of %d bytes at an address that is no multiple of %d (byte %zu of %s)", verb(kind), bytes, bytes,
              region ? address - region->start : 0, region ? region->name : "nothing"),
         {code});
    give_up();
  }
  Region* region = region_at(address);
  if (!region || address + bytes > region->start + region->bytes) return out_of_bounds(address, bytes, kind, code);
  if (region->space == kOwn || kind == Kind::kPrefetch) return;
  if (region->space == kConstant) {
    if (kind == Kind::kWrite || kind == Kind::kAtomic)
      find("out of bounds", text("%s of constant memory", verb(kind)), {code});
    return;
  }
  const size_t offset = address - region->start;
  if (state.modes.count && kind != Kind::kBeginsCopy)
    count_access(address, bytes, region->space, kind == Kind::kWrite || kind == Kind::kAtomic, code);
  if (!state.modes.check) return;
  if (region->written) check_written(*region, offset, bytes, kind, code);
  for (size_t done = 0; done < static_cast<size_t>(bytes);) {
    const size_t at = offset + done;
    const size_t n = std::min<size_t>(bytes - done, kLine - at % kLine);
    touch_line(*region, at, n, kind, code);
    done += n;
  }
}

void check_static_shared() {
  size_t bytes = 0;
  for (const Region& r : regions) {
    const bool is_dynamic = r.start == reinterpret_cast<uintptr_t>(state.dynamic_shared);
    if (r.space == kShared && !is_dynamic && !r.pages.empty()) bytes += r.bytes;
  }
  if (bytes > kMaxStaticShared) {
    find("launch", text("static shared arrays of %zu bytes, where a block can have %zu", bytes, kMaxStaticShared), {});
  }
}

}  // namespace emulator
