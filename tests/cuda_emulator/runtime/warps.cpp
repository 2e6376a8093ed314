#include "warps.h"

#include <cstring>

#include "findings.h"
#include "ordering.h"
#include "requests.h"

namespace emulator {

namespace {

void complete(Meeting& meeting, int first_thread) {
  meeting.open = false;
  const unsigned arrived = meeting.exchange.arrived;
  if (state.modes.check && meeting.operation == kSyncWarp) order_at_warp_barrier(first_thread, arrived);
  if (state.modes.count && arrived == state.warps[first_thread >> 5].exists) end_of_warp_requests(first_thread >> 5);
  for (unsigned left = arrived; left; left &= left - 1) wake(first_thread + __builtin_ctz(left));
}

bool is_complete(const Meeting& meeting, const Warp& warp) {
  return ((meeting.exchange.arrived | warp.exited) & meeting.mask) == meeting.mask;
}

Meeting* join(Warp& warp, int operation, unsigned mask, Place place) {
  Meeting* free = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (!meeting.used)
      free = free ? free : &meeting;
    else if (meeting.open && meeting.mask == mask)
      return &meeting;
  }
  if (!free) {
    find("divergent warp", "more than 8 operations of one warp are open at a time", {.place = place});
    give_up();
  }
  free->mask = mask;
  free->operation = operation;
  free->place = place;
  free->exchange.arrived = free->resumed = 0;
  free->open = free->used = true;
  return free;
}

void check_mask(const Warp& warp, unsigned mask, Place place) {
  if (!(mask >> emulator_indices.lane & 1)) {
    find("divergent warp", text("lane %u is not in the mask 0x%08x that it gives", emulator_indices.lane, mask),
         {.place = place});
    give_up();
  }
  if (mask & warp.exited) {
    find("divergent warp", text("lanes 0x%08x of the mask 0x%08x have ended already", mask & warp.exited, mask),
         {.place = place});
  }
}

const Exchange* exchange(int operation, unsigned mask, const void* value, int bytes, bool wide, Place place) {
  const int me = state.current, lane = me & 31;
  Warp& warp = state.warps[me >> 5];
  mask &= warp.exists;
  if (!(mask >> lane & 1) || (mask & warp.exited)) check_mask(warp, mask, place);
  Meeting& meeting = *join(warp, operation, mask, place);
  if (meeting.operation != operation || meeting.place.line != place.line || strcmp(meeting.place.file, place.file)) {
    find("divergent warp",
         text("lanes of the mask 0x%08x are at different operations: here, and at %s:%d", mask, meeting.place.file,
              meeting.place.line),
         {.place = place});
  }
  if (state.modes.count)
    count(operation == kSyncWarp ? kWarpBarriers : operation == kMultiply ? kTensorProducts : kShuffles);
  if (wide)
    memcpy(meeting.exchange.wide[lane], value, bytes);
  else
    memcpy(&meeting.exchange.narrow[lane], value, 8);
  meeting.exchange.arrived |= 1u << lane;
  Thread& thread = state.threads[me];
  thread.status = Status::kInExchange;
  thread.place = place;
  thread.operation = operation;
  if (is_complete(meeting, warp)) complete(meeting, me & ~31);
  wait();
  meeting.resumed |= 1u << lane;
  if (meeting.resumed == meeting.exchange.arrived) meeting.used = false;
  return &meeting.exchange;
}

}  // namespace

void leave_warp(int thread) {
  Warp& warp = state.warps[thread >> 5];
  warp.exited |= 1u << (thread & 31);
  for (Meeting& meeting : warp.meetings) {
    if (!meeting.used || !meeting.open || !(meeting.mask >> (thread & 31) & 1)) continue;
    find("divergent warp",
         text("lane %d ended without reaching an operation whose mask 0x%08x names it", thread & 31, meeting.mask),
         {.place = meeting.place});
    if (is_complete(meeting, warp)) complete(meeting, thread & ~31);
  }
}

}  // namespace emulator

using namespace emulator;

const Exchange* emulator_exchange(int operation, unsigned mask, unsigned long long value, const char* file, int line) {
  return exchange(operation, mask, &value, 8, false, {file, line});
}

const Exchange* emulator_exchange_wide(int operation, unsigned mask, const void* value, int bytes, const char* file,
                                       int line) {
  return exchange(operation, mask, value, bytes, true, {file, line});
}

unsigned emulator_active_mask() {
  const Warp& warp = state.warps[state.current >> 5];
  return warp.exists & ~warp.exited;
}

void emulator_bad_lane(int lane, const char* file, int line) {
  find("divergent warp", text("a shuffle reads lane %d, which is not in its mask or has ended", lane),
       {.place = {file, line}});
}
