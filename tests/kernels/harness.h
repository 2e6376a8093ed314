/* Numbers to try, memory that ends at a page which must not be touched, comparisons, and a digest of results. */
#ifndef PYLLAMA2_HARNESS_H
#define PYLLAMA2_HARNESS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../pyllama2/_cpu/kernels/kernels.h"

/* ORDINARY: about normal. EXTREME: all of the largest magnitude. WIDE: 2^-40 .. 2^40, and zeros. TINY: subnormal.
 * BROKEN: ordinary but for an infinity and a NaN. */
typedef enum { ORDINARY, EXTREME, WIDE_RANGE, TINY, BROKEN, PATTERNS } Pattern;

static uint64_t random_state;

static uint32_t random_bits(void) { /* Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014) */
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (uint32_t)((z ^ z >> 31) >> 32);
}

static float random_uniform(void) { return (float)(random_bits() >> 8) * 0x1p-23f - 1.0f; } /* -1 .. 1 */

static float random_number(Pattern pattern) {
  float ordinary = random_uniform() + random_uniform() + random_uniform();
  if (pattern == EXTREME) return random_bits() & 1 ? 3.0f : -3.0f;
  if (pattern == WIDE_RANGE) return random_bits() % 8 == 0 ? 0.0f : ldexpf(ordinary, (int)(random_bits() % 81) - 40);
  if (pattern == TINY) return ordinary * 0x1p-130f;
  return ordinary;
}

static void random_numbers(float* x, int64_t n, Pattern pattern) {
  for (int64_t i = 0; i < n; i++) x[i] = random_number(pattern);
  if (pattern != BROKEN || n < 2) return;
  x[random_bits() % n] = random_bits() & 1 ? INFINITY : -INFINITY;
  x[random_bits() % n] = NAN;
}

/* Room for size bytes (a multiple of what lies in it), all 0xa5, right before a page that ends the program when it is
 * touched. */
typedef struct {
  char* map;
  size_t length;
  void* p;
} Room;

static Room room_for(size_t size) {
  Room room;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  room.length = (size + page - 1) / page * page + page;
  room.map = mmap(NULL, room.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room.map == MAP_FAILED || mprotect(room.map + room.length - page, page, PROT_NONE)) {
    perror("no memory");
    exit(2);
  }
  memset(room.map, 0xa5, room.length - page);
  room.p = room.map + room.length - page - size;
  return room;
}

static void leave(Room room) { munmap(room.map, room.length); }

static const char* subject; /* what is compared, for messages */
static long n_failures, n_compared;
static uint64_t digest; /* FNV-1a */

static void add_to_digest(const void* p, size_t size) {
  for (size_t i = 0; i < size; i++) digest = (digest ^ ((const uint8_t*)p)[i]) * 0x100000001b3;
}

/* Every NaN is the same: their signs and payloads are the machine's. */
static void add_floats_to_digest(const float* x, int64_t n) {
  static const float nan = NAN;
  for (int64_t i = 0; i < n; i++) add_to_digest(x[i] == x[i] ? x + i : &nan, sizeof nan);
}

static void fail(const char* what, int64_t at, double found, double expected) {
  if (n_failures++ < 20) printf("%s: %s[%lld] is %.9g, not %.9g\n", subject, what, (long long)at, found, expected);
}

static void expect_bytes(const char* what, const void* found, const void* expected, size_t size) {
  n_compared += (long)size;
  for (size_t i = 0; i < size; i++)
    if (((const uint8_t*)found)[i] != ((const uint8_t*)expected)[i]) {
      fail(what, (int64_t)i, ((const uint8_t*)found)[i], ((const uint8_t*)expected)[i]);
      return;
    }
}

/* Equal bits, or both NaN. */
static void expect_floats(const char* what, const float* found, const float* expected, int64_t n) {
  n_compared += (long)n;
  for (int64_t i = 0; i < n; i++)
    if (memcmp(found + i, expected + i, sizeof(float)) && (found[i] == found[i] || expected[i] == expected[i])) {
      fail(what, i, found[i], expected[i]);
      return;
    }
}

static void expect_near(const char* what, const float* found, const float* expected, const float* error, int64_t n) {
  n_compared += (long)n;
  for (int64_t i = 0; i < n; i++) {
    int same = isfinite(expected[i]) ? fabsf(found[i] - expected[i]) <= error[i] : !isfinite(found[i]);
    if (!same) {
      fail(what, i, found[i], expected[i]);
      return;
    }
  }
}

#endif
