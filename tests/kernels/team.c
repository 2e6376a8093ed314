/* The steps of a team (team.h) on threads that are stopped anywhere: every unit is written once, from the right inputs.
 *
 * Prints how many pieces threads took from others' shares, and how many they did again. Exits with 1 if a number is
 * not what one thread computes. With -fsanitize=thread it also ends with an error if nothing orders what one thread
 * writes and another one reads, as CPUs of ARM need it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../pyllama2/_cpu/team.h"

enum { THREADS = 4, STEPS = 60, REGIONS = 12, UNITS = 97 };

static uint32_t buffers[2][UNITS], expected[2][UNITS];
static int writes[UNITS];
static Team* team;
static Member members[THREADS];
static pthread_barrier_t meeting;
static long taken, redone;
static int wrong; /* whether a thread could write what it had computed of other numbers */

static uint32_t mix(uint32_t a, uint32_t b) { return (a * 2654435761u ^ b) * 2246822519u + (a >> 15); }

static void stop_sometimes(unsigned* seed) {
  const int chance = rand_r(seed) % 400;
  if (chance == 0) usleep(3000);
  if (chance < 20) usleep(1);
}

static void run_region(int id, int size, unsigned* seed) {
  Member* m = &members[id];
  uint32_t results[UNITS];
  enter_region(m, team, id, size);
  for (int s = 0; s < STEPS; s++) {
    const uint32_t* x = buffers[s % 2];
    uint32_t* y = buffers[1 - s % 2];
    const int movable = s % 5 != 4, units = s % 7 == 3 ? 0 : UNITS;
    stop_sometimes(seed);
    start_step(m, s, units, 1, 9, movable);
    while (take_piece(m)) {
      for (int64_t u = m->first; u < m->end; u++) {
        results[u] = mix(__atomic_load_n(&x[u * 7 % UNITS], __ATOMIC_RELAXED), (uint32_t)(s * UNITS + u));
        stop_sometimes(seed);
      }
      if (movable && !may_write(m)) continue;
      /* From here on the inputs stay as they are. ThreadSanitizer checks that these plain reads are ordered. */
      for (int64_t u = m->first; u < m->end; u++)
        if (results[u] != mix(x[u * 7 % UNITS], (uint32_t)(s * UNITS + u)))
          __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
      for (int64_t u = m->first; u < m->end; u++) {
        __atomic_store_n(&y[u], results[u], __ATOMIC_RELAXED);
        __atomic_fetch_add(&writes[u], 1, __ATOMIC_RELAXED);
      }
    }
    if (units == 0) { /* y must have what x has: a step of one unit that copies */
      start_step(m, s, 1, 1, 1, 0);
      while (take_piece(m)) memcpy(y, x, sizeof(uint32_t) * UNITS);
    }
  }
}

static void* run_thread(void* argument) {
  const int id = (int)(intptr_t)argument;
  unsigned seed = (unsigned)id + 1;
  for (int r = 0; r < REGIONS; r++) {
    const int size = 1 + r % THREADS; /* of the threads that the region has, as OpenMP may give fewer */
    if (id == 0) start_region(team);
    pthread_barrier_wait(&meeting);
    if (id < size) run_region(id, size, &seed);
    pthread_barrier_wait(&meeting);
  }
  return NULL;
}

int main(void) {
  static Event events[THREADS][1 << 16];
  const size_t room = sizeof(Team) + THREADS * sizeof(Seat);
  team = aligned_alloc(CACHE_LINES, (room + CACHE_LINES - 1) / CACHE_LINES * CACHE_LINES);
  memset(team, 0, room);
  make_team(team, THREADS, 100);
  int all = 0;
  for (int r = 0; r < REGIONS; r++)
    for (int s = 0; s < STEPS; s++) {
      const uint32_t* x = expected[s % 2];
      for (int u = 0; u < UNITS; u++)
        expected[1 - s % 2][u] = s % 7 == 3 ? x[u] : mix(x[u * 7 % UNITS], (uint32_t)(s * UNITS + u));
      all += s % 7 != 3;
    }
  pthread_t threads[THREADS];
  pthread_barrier_init(&meeting, NULL, THREADS);
  for (intptr_t t = 0; t < THREADS; t++) {
    members[t].events = events[t], members[t].most_events = 1 << 16;
    pthread_create(&threads[t], NULL, run_thread, (void*)t);
  }
  for (int t = 0; t < THREADS; t++) {
    pthread_join(threads[t], NULL);
    for (int64_t i = 0; i < members[t].n_events; i++) taken += events[t][i].from_other, redone += events[t][i].redone;
  }
  for (int u = 0; u < UNITS; u++)
    if (writes[u] != all) return printf("unit %d was written %d times of %d\n", u, writes[u], all), 1;
  if (wrong) return printf("a piece of wrong inputs was written\n"), 1;
  if (memcmp(buffers, expected, sizeof buffers) != 0) return printf("a number is wrong\n"), 1;
  printf("%ld %ld\n", taken, redone);
  return 0;
}
