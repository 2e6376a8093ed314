/* How the threads of a team share the steps of a pass: work is claimed, not dealt.
 *
 * Every thread runs the same steps in the same order. A step is a number of units, such as blocks of rows:
 *
 *     start_step(member, kind, units, grain, most, movable);
 *     while (take_piece(member))                  units member->first .. member->end
 *       compute them, into memory of this thread;
 *       if (may_write(member)) write the results where all threads read them;
 *
 * Each thread begins with a share of the units, and takes pieces of it from the front, smaller and smaller ones. A
 * thread that has no share left takes pieces of the others' shares. take_piece() returns 0 when every unit of the step
 * is written: so there is no other barrier. A thread need not even be there. One that comes late, because the system
 * ran another program on its core, finds that its steps are over, and catches up.
 *
 * A thread may be stopped amid a piece. In a movable step another thread that has waited longer than the piece should
 * take does it once more. Only one of the two may write, and whoever computes a piece gets the same bits. What a late
 * thread reads may change while it reads, but then its step is over: it gets no piece, or must not write it.
 *
 * A word holds the number of a step and a number of units, so that one atomic operation changes both. A word of an
 * earlier step counts as a new one. So nothing is reset between steps.
 */
#ifndef PYLLAMA2_TEAM_H
#define PYLLAMA2_TEAM_H

#include <sched.h>
#include <stdint.h>
#include <time.h>

enum { UNIT_BITS = 24 }; /* of a word; the others are the step's number */
#define ONE_STEP ((uint64_t)1 << UNIT_BITS)
enum { NO_PIECE, COMPUTING, WRITING }; /* lowest 2 bits of Seat.piece */
enum { VERSION_BITS = 8, ONE_VERSION = 4 }; /* of Seat.piece: its state, and the number of pieces shown so far */
enum { CACHE_LINES = 128 }; /* two lines, which some CPUs fetch together */
enum { CLOCK_SPINS = 64, NAP_NS = 50000 }; /* looks between two of the clock; length of a nap */
#define LEAST_PATIENCE_S 1e-5 /* how long a thread waits for a piece, besides the time that it would take itself */
#define PATIENCE_S 1e-3 /* and if it does not know that time */

typedef struct { /* what the others see of a thread */
  uint64_t share; /* step, and the first unit of this thread's share that nobody has taken */
  uint64_t piece; /* step and first unit of a movable piece, shifted by VERSION_BITS; version; state */
  int64_t piece_end; /* the unit after its last */
  int64_t unreported; /* units that it wrote before this piece and that Team.done lacks */
  int cpu; /* where it began its last step; -1 if that is not known */
} __attribute__((aligned(CACHE_LINES))) Seat;

typedef struct { /* in memory that starts at a multiple of CACHE_LINES */
  uint64_t done; /* the step that runs, and its units that are written */
  uint64_t base __attribute__((aligned(CACHE_LINES))); /* the region's first step */
  int64_t spins; /* how often a waiting thread looks before it lets others run */
  int n_threads;
  Seat seats[]; /* one for each thread */
} __attribute__((aligned(CACHE_LINES))) Team;

typedef struct { /* of the trace: what a thread did from start to end */
  int kind; /* of the step; kinds below 0 are the waits at its end */
  int pieces; /* that it took */
  int from_other; /* of these, how many of other threads' shares */
  int redone; /* of these, how many another thread had begun */
  double start, end;
} Event;

typedef struct { /* one thread's own view */
  Team* team;
  int id, size; /* size: threads of the region */
  uint64_t step;
  int64_t units, grain, most, first, end;
  int movable, victim, version;
  int64_t written; /* units that it wrote and did not report */
  double started, per_unit; /* when its piece began; seconds per unit of the last one, 0 if none */
  Event event;
  Event* events; /* of the trace; NULL without */
  int64_t n_events, most_events;
} Member;

static inline double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Makes a team of zeroed memory. */
static inline void make_team(Team* team, int n_threads, int64_t spins) {
  team->n_threads = n_threads, team->spins = spins;
  for (int i = 0; i < n_threads; i++) team->seats[i].cpu = -1;
}

/* Before a region, by the thread that starts it. The region's steps are later than any before. After a fork these may
 * have been left at any point: the child has not the threads that were in them. */
static inline void start_region(Team* team) {
  uint64_t last = team->done;
  for (int i = 0; i < team->n_threads; i++)
    if ((int64_t)(team->seats[i].share - last) > 0) last = team->seats[i].share;
  team->done = team->base = (last & ~(ONE_STEP - 1)) + ONE_STEP;
}

/* At the beginning of a region, by each of its threads. */
static inline void enter_region(Member* m, Team* team, int id, int size) {
  m->team = team, m->id = id, m->size = size;
  m->step = team->base;
  m->written = 0;
}

static inline int64_t first_of_share(const Member* m, int id) { return m->units * id / m->size; }

/* Units of this thread's step that are written. ONE_STEP or more: the step is over. */
static inline int64_t units_done(const Member* m) {
  return (int64_t)(__atomic_load_n(&m->team->done, __ATOMIC_ACQUIRE) - m->step);
}

static inline int step_is_over(const Member* m) { return units_done(m) >= (int64_t)ONE_STEP; }

static inline void record(Member* m, int kind, double end) {
  if (m->n_events < m->most_events) {
    m->event.kind = kind, m->event.end = end;
    m->events[m->n_events++] = m->event;
  }
  m->event = (Event){.start = end};
}

#ifdef __linux__
static inline int cpu_now(void) { return sched_getcpu(); }

/* Moves this thread to a CPU that no thread of the team is on, if it may run on one. The system leaves two of its
 * threads on one core, if another program has the other. Then it may run everywhere again. */
static void leave_cpu(const Member* m) {
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  for (int i = 0; i < m->size; i++) {
    const int cpu = __atomic_load_n(&m->team->seats[i].cpu, __ATOMIC_RELAXED);
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_CLR(cpu, &others);
  }
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
  __atomic_store_n(&m->team->seats[m->id].cpu, cpu_now(), __ATOMIC_RELAXED);
}
#else
static inline int cpu_now(void) { return -1; }
static inline void leave_cpu(const Member* m) { (void)m; }
#endif

/* Begins a step.
 *
 *   kind     of the step, for the trace
 *   units    how many it has, fewer than ONE_STEP
 *   grain    the fewest units of a piece, and most: the most
 *   movable  whether a piece may be computed twice: nothing but may_write() lets a thread write for others */
static inline void start_step(Member* m, int kind, int64_t units, int64_t grain, int64_t most, int movable) {
  m->units = units, m->grain = grain, m->most = most, m->movable = movable;
  m->victim = m->id;
  m->first = m->end = 0;
  m->per_unit = 0;
  __atomic_store_n(&m->team->seats[m->id].cpu, cpu_now(), __ATOMIC_RELAXED);
  if (m->events) {
    m->event.start = seconds_now();
    m->event.kind = kind;
  }
}

/* Takes a piece of a thread's share. Returns whether there was one. */
static inline int take_of_share(Member* m, int id) {
  const int64_t end = first_of_share(m, id + 1);
  uint64_t* share = &m->team->seats[id].share;
  uint64_t word = __atomic_load_n(share, __ATOMIC_RELAXED);
  for (;;) {
    int64_t first = (int64_t)(word - m->step);
    if (first < 0) first = first_of_share(m, id); /* of an earlier step */
    if (first >= end) return 0; /* also of a later one */
    int64_t n = (end - first) / 4;
    n = n < m->grain ? m->grain : n > m->most ? m->most : n;
    if (n > end - first) n = end - first;
    if (__atomic_compare_exchange_n(share, &word, m->step + (uint64_t)(first + n), 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED)) {
      m->first = first, m->end = first + n;
      return 1;
    }
  }
}

/* Seat.piece of the piece that this thread computes. */
static inline uint64_t word_of_piece(const Member* m) {
  return (m->step + (uint64_t)m->first) << VERSION_BITS | (uint64_t)m->version | COMPUTING;
}

/* Shows the others which piece this thread computes. The version tells it from the same piece, shown before: another
 * thread may have read that one's fields. */
static inline void show_piece(Member* m) {
  Seat* seat = &m->team->seats[m->id];
  m->version = (m->version + ONE_VERSION) & ((1 << VERSION_BITS) - 1);
  __atomic_store_n(&seat->piece_end, m->end, __ATOMIC_RELAXED);
  __atomic_store_n(&seat->unreported, m->written, __ATOMIC_RELAXED);
  __atomic_store_n(&seat->piece, word_of_piece(m), __ATOMIC_RELEASE);
}

/* Takes over what another thread computes, if it has shown the same piece for longer than that should take. Returns
 * whether it did.
 *
 *   seen    the word of the piece that it showed before; 0: none. Becomes 0 if it goes on.
 *   since   when it was first seen */
static inline int take_over(Member* m, int id, uint64_t* seen, double* since) {
  Seat* seat = &m->team->seats[id];
  uint64_t word = __atomic_load_n(&seat->piece, __ATOMIC_ACQUIRE);
  const int64_t end = __atomic_load_n(&seat->piece_end, __ATOMIC_RELAXED);
  const int64_t written = __atomic_load_n(&seat->unreported, __ATOMIC_RELAXED);
  const int64_t first = (int64_t)(word - (m->step << VERSION_BITS)) >> VERSION_BITS;
  const int goes_on = (word & 3) != COMPUTING || first < 0 || first >= m->units || (*seen && word != *seen);
  if (goes_on) {
    *seen = 0;
    return 0;
  }
  const double now = seconds_now(), own = m->per_unit * (double)(end - first);
  if (!*seen) *seen = word, *since = now;
  if (now - *since < (own > 0 ? LEAST_PATIENCE_S + own : PATIENCE_S)) return 0;
  *seen = 0;
  if (!__atomic_compare_exchange_n(&seat->piece, &word, NO_PIECE, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return 0;
  m->first = first, m->end = end, m->written += written;
  return 1;
}

/* Waits until the step is over, and returns 0; or until there is a piece that another thread does not get done. */
static int wait_for_step(Member* m) {
  uint64_t seen = 0;
  double since = 0;
  int other = m->id;
  if (m->written) __atomic_fetch_add(&m->team->done, (uint64_t)m->written, __ATOMIC_ACQ_REL);
  m->written = 0;
  for (int64_t spins = 1;; spins++) {
    const int64_t done = units_done(m);
    if (done >= m->units) {
      uint64_t complete = m->step + (uint64_t)m->units;
      if (done == m->units)
        __atomic_compare_exchange_n(&m->team->done, &complete, m->step + ONE_STEP, 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED);
      m->step += ONE_STEP;
      return 0;
    }
    pause_cpu();
    if (spins % CLOCK_SPINS) continue;
    if (m->size > 1) { /* looks at one thread, until it goes on, then at the next */
      if (!seen) other = (other + 1) % m->size == m->id ? (m->id + 1) % m->size : (other + 1) % m->size;
      const int cpu = cpu_now();
      if (cpu >= 0 && __atomic_load_n(&m->team->seats[other].cpu, __ATOMIC_RELAXED) == cpu) leave_cpu(m);
      if (m->movable && take_over(m, other, &seen, &since)) return 1;
    }
    if (spins > 8 * m->team->spins) {
      nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    } else if (spins > m->team->spins) {
      sched_yield();
    }
  }
}

/* Takes the next piece. Returns 0 when the step is over. */
static inline int take_piece(Member* m) {
  int found = 0, redone = 0;
  double now = 0;
  if (m->movable) {
    now = seconds_now();
    if (m->end > m->first) m->per_unit = (now - m->started) / (double)(m->end - m->first);
    m->started = now;
  } else if (m->end > m->first) {
    m->written += m->end - m->first;
  }
  m->first = m->end = 0;
  for (int i = 0; i < m->size && !(found = take_of_share(m, m->victim)); i++) m->victim = (m->victim + 1) % m->size;
  if (!found) {
    const int kind = m->event.kind;
    if (m->events) {
      now = seconds_now();
      record(m, kind, now);
    }
    found = redone = wait_for_step(m);
    if (m->events) {
      record(m, -1 - kind, seconds_now());
      m->event.kind = kind;
    }
    if (!found) return 0;
  }
  if (m->events) {
    m->event.pieces++;
    m->event.from_other += redone || m->victim != m->id;
    m->event.redone += redone;
  }
  if (m->movable) {
    if (redone) m->started = seconds_now();
    show_piece(m);
  }
  return 1;
}

/* Whether this thread still has its piece. If so no other takes it from here on, and it must be written. */
static inline int may_write(Member* m) {
  Seat* seat = &m->team->seats[m->id];
  uint64_t word = word_of_piece(m);
  if (__atomic_compare_exchange_n(&seat->piece, &word, word - COMPUTING + WRITING, 0, __ATOMIC_ACQ_REL,
                                  __ATOMIC_RELAXED)) {
    m->written += m->end - m->first;
    return 1;
  }
  m->written = 0; /* who took the piece also took over these */
  return 0;
}

#endif
